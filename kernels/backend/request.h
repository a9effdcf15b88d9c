// One request as the models see it: tensors by name, memory as it lies, errors as exceptions.
#pragma once
#include <deque>
#include <stdexcept>
#include <string>
#include <vector>

#include "triton_api.h"

// A request that is not what the contract allows: answered with INVALID_ARGUMENT and the sentence.
struct Refusal : std::invalid_argument {
    using std::invalid_argument::invalid_argument;
};

// Turn an error of Triton's into an exception.
void check(TRITONSERVER_Error* error);

// printf into a string, for sentences.
std::string sentence(const char* format, ...) __attribute__((format(printf, 1, 2)));

template <class T>
struct Tensor {
    const T* data;
    std::vector<int64_t> shape;
};

class Request {
  public:
    Request(TRITONBACKEND_Request* request, TRITONBACKEND_Response* response) : request_(request), response_(response) {}

    // An input of the given type and number of dimensions, none of them 0. Throws Refusal.
    template <class T>
    Tensor<T> input(const char* name, size_t dimensions);
    // An input of exactly `count` elements.
    template <class T>
    const T* input_of(const char* name, int64_t count);
    // Memory for an output, or nullptr where nobody asked for it.
    template <class T>
    T* output(const char* name, const std::vector<int64_t>& shape);

  private:
    const void* contiguous(const char* name, TRITONSERVER_DataType type, size_t size, size_t dimensions,
                           std::vector<int64_t>& shape);
    void* allocate(const char* name, TRITONSERVER_DataType type, size_t size, const std::vector<int64_t>& shape);

    TRITONBACKEND_Request* request_;
    TRITONBACKEND_Response* response_;
    std::deque<std::vector<char>> gathered_;  // inputs that came in several pieces
};

template <class T>
constexpr TRITONSERVER_DataType type_of();
template <>
constexpr TRITONSERVER_DataType type_of<uint8_t>() { return TYPE_UINT8; }
template <>
constexpr TRITONSERVER_DataType type_of<uint16_t>() { return TYPE_UINT16; }
template <>
constexpr TRITONSERVER_DataType type_of<uint64_t>() { return TYPE_UINT64; }
template <>
constexpr TRITONSERVER_DataType type_of<int32_t>() { return TYPE_INT32; }
template <>
constexpr TRITONSERVER_DataType type_of<float>() { return TYPE_FP32; }

template <class T>
Tensor<T> Request::input(const char* name, size_t dimensions) {
    Tensor<T> tensor;
    tensor.data = static_cast<const T*>(contiguous(name, type_of<T>(), sizeof(T), dimensions, tensor.shape));
    return tensor;
}

template <class T>
const T* Request::input_of(const char* name, int64_t count) {
    std::vector<int64_t> shape;
    const void* data = contiguous(name, type_of<T>(), sizeof(T), 0, shape);
    int64_t elements = 1;
    for (int64_t side : shape) elements *= side;
    if (elements != count)
        throw Refusal(sentence("%s has %lld elements; it must have %lld", name, (long long)elements, (long long)count));
    return static_cast<const T*>(data);
}

template <class T>
T* Request::output(const char* name, const std::vector<int64_t>& shape) {
    return static_cast<T*>(allocate(name, type_of<T>(), sizeof(T), shape));
}
