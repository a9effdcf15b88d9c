// One request as the models see it: tensors by name, where they lie or where the device reaches them; errors as exceptions.
#pragma once
#include <deque>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "device.h"

// A request that is not what the contract allows: answered with INVALID_ARGUMENT and the sentence.
struct Refusal : std::invalid_argument {
    using std::invalid_argument::invalid_argument;
};

// Turn an error of Triton's into an exception.
void check(TRITONSERVER_Error* error);

// printf into a string, for sentences.
std::string sentence(const char* format, ...) __attribute__((format(printf, 1, 2)));

// An input, wherever it lies.
template <class T>
struct Tensor {
    const T* data;
    std::vector<int64_t> shape;
    Place place;

    int64_t size() const {
        int64_t elements = 1;
        for (int64_t side : shape) elements *= side;
        return elements;
    }
};

class Request {
  public:
    Request(TRITONBACKEND_Request* request, TRITONBACKEND_Response* response, Device& device)
        : request_(request), response_(response), device_(device) {}
    ~Request();  // nothing is written to Triton's memory any more
    Request(const Request&) = delete;
    Request& operator=(const Request&) = delete;

    Device& device() { return device_; }

    // Whether the request brings this input.
    bool has(const char* name) const;
    // An input of the given type and number of dimensions (0: any), no side 0. Throws Refusal.
    template <class T>
    Tensor<T> input(const char* name, size_t dimensions);
    // Its elements where the device reaches them: in place, or copied.
    template <class T>
    const T* on_device(const Tensor<T>& tensor);
    // Its elements on the host, read once: shared memory may change under us.
    template <class T>
    std::vector<T> values(const Tensor<T>& tensor);
    // Those of an input of exactly `count` elements. Throws Refusal.
    template <class T>
    std::vector<T> values(const char* name, int64_t count);

    // Names of the outputs that were asked for.
    std::vector<std::string> outputs() const;
    // Memory that the device reaches, for an output; nullptr where nobody asked for it.
    template <class T>
    T* output(const char* name, const std::vector<int64_t>& shape);
    // Answer an output, if somebody asked for it, with values of the host.
    template <class T>
    void put(const char* name, const std::vector<int64_t>& shape, const std::vector<T>& values);
    // The same with one text, as Triton's type BYTES has it: the length before it, four bytes, little-endian.
    void put(const char* name, const std::string& text);

    // Outputs are where Triton wants them, and whole.
    void finish();
    // What is to be undone should this request not come to that.
    void unless_finished(std::function<void()> otherwise) { otherwise_ = std::move(otherwise); }

  private:
    struct Delivery {
        void* to;
        const void* from;
        size_t bytes;
    };

    const void* located(const char* name, TRITONSERVER_DataType type, size_t size, size_t dimensions,
                        std::vector<int64_t>& shape, Place& place);
    void put_bytes(const char* name, TRITONSERVER_DataType type, const std::vector<int64_t>& shape, const char* first,
                   size_t bytes);
    const void* reached(const void* data, size_t bytes, Place place);
    void fetch(void* to, const void* from, size_t bytes, Place place);
    void* allocated(const char* name, TRITONSERVER_DataType type, size_t bytes, const std::vector<int64_t>& shape, Place& place);
    void* allocated_on_device(const char* name, TRITONSERVER_DataType type, size_t size, const std::vector<int64_t>& shape);

    TRITONBACKEND_Request* request_;
    TRITONBACKEND_Response* response_;
    Device& device_;
    std::deque<std::vector<char>> host_;  // inputs that came in several pieces, values on their way to a GPU
    std::vector<Delivery> deliveries_;    // outputs that Triton wants where the device does not reach
    std::function<void()> otherwise_;
    bool finished_ = false;
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
    tensor.data = static_cast<const T*>(located(name, type_of<T>(), sizeof(T), dimensions, tensor.shape, tensor.place));
    return tensor;
}

template <class T>
const T* Request::on_device(const Tensor<T>& tensor) {
    return static_cast<const T*>(reached(tensor.data, tensor.size() * sizeof(T), tensor.place));
}

template <class T>
std::vector<T> Request::values(const Tensor<T>& tensor) {
    std::vector<T> values(tensor.size());
    fetch(values.data(), tensor.data, values.size() * sizeof(T), tensor.place);
    return values;
}

template <class T>
std::vector<T> Request::values(const char* name, int64_t count) {
    Tensor<T> tensor = input<T>(name, 0);
    if (tensor.size() != count)
        throw Refusal(sentence("%s has %lld elements; it must have %lld", name, (long long)tensor.size(), (long long)count));
    return values(tensor);
}

template <class T>
T* Request::output(const char* name, const std::vector<int64_t>& shape) {
    return static_cast<T*>(allocated_on_device(name, type_of<T>(), sizeof(T), shape));
}

template <class T>
void Request::put(const char* name, const std::vector<int64_t>& shape, const std::vector<T>& values) {
    put_bytes(name, type_of<T>(), shape, reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}
