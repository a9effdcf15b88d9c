#include "request.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>

static const int64_t LARGEST_SIDE = 1 << 28;

void check(TRITONSERVER_Error* error) {
    if (error == nullptr) return;
    std::string message = TRITONSERVER_ErrorMessage(error);
    TRITONSERVER_ErrorDelete(error);
    throw std::runtime_error(message);
}

std::string sentence(const char* format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    return text;
}

const void* Request::contiguous(const char* name, TRITONSERVER_DataType type, size_t size, size_t dimensions,
                                std::vector<int64_t>& shape) {
    TRITONBACKEND_Input* input;
    check(TRITONBACKEND_RequestInput(request_, name, &input));
    TRITONSERVER_DataType actual;
    const int64_t* sides;
    uint32_t count, buffers;
    uint64_t bytes;
    check(TRITONBACKEND_InputProperties(input, nullptr, &actual, &sides, &count, &bytes, &buffers));
    shape.assign(sides, sides + count);
    uint64_t elements = 1;
    bool sensible = true;  // a product that wraps around can look like the byte size of a small tensor
    for (int64_t side : shape)
        sensible = sensible && side > 0 && side <= LARGEST_SIDE && !__builtin_mul_overflow(elements, (uint64_t)side, &elements);
    if (actual != type || (dimensions && count != dimensions) || !sensible || bytes % size || bytes / size != elements) {
        std::string sides_text;
        for (int64_t side : shape) sides_text += (sides_text.empty() ? "" : "x") + std::to_string(side);
        throw Refusal(sentence("%s is %s with %llu bytes; the model wants another type, shape or size", name,
                               sides_text.c_str(), (unsigned long long)bytes));
    }
    std::vector<char> pieces;
    for (uint32_t i = 0; i < buffers; i++) {
        const void* buffer;
        uint64_t part;
        TRITONSERVER_MemoryType memory = MEMORY_CPU;
        int64_t memory_id = 0;
        check(TRITONBACKEND_InputBuffer(input, i, &buffer, &part, &memory, &memory_id));
        if (memory == MEMORY_GPU) throw std::runtime_error(sentence("%s lies on a GPU; this build is for CPUs", name));
        if (buffers == 1) return buffer;
        pieces.insert(pieces.end(), (const char*)buffer, (const char*)buffer + part);
    }
    gathered_.push_back(std::move(pieces));
    return gathered_.back().data();
}

void* Request::allocate(const char* name, TRITONSERVER_DataType type, size_t size, const std::vector<int64_t>& shape) {
    uint32_t wanted = 0;
    bool asked = false;
    check(TRITONBACKEND_RequestOutputCount(request_, &wanted));
    for (uint32_t i = 0; i < wanted && !asked; i++) {
        const char* other;
        check(TRITONBACKEND_RequestOutputName(request_, i, &other));
        asked = strcmp(name, other) == 0;
    }
    if (!asked) return nullptr;
    TRITONBACKEND_Output* output;
    check(TRITONBACKEND_ResponseOutput(response_, &output, name, type, shape.data(), (uint32_t)shape.size()));
    for (int64_t side : shape) size *= (size_t)side;
    void* buffer;
    TRITONSERVER_MemoryType memory = MEMORY_CPU;
    int64_t memory_id = 0;
    check(TRITONBACKEND_OutputBuffer(output, &buffer, size, &memory, &memory_id));
    if (memory == MEMORY_GPU) throw std::runtime_error(sentence("%s was placed on a GPU; this build is for CPUs", name));
    return buffer;
}
