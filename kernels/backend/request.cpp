#include "request.h"

#include <algorithm>
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

Request::~Request() {
    if (finished_) return;
    if (otherwise_) otherwise_();
    try {  // refused or failed halfway: what was queued still writes
        device_.wait();
        device_.recycle();
    } catch (const std::exception&) {  // told by the next request, if it lasts
    }
}

bool Request::has(const char* name) const {
    TRITONBACKEND_Input* input;
    TRITONSERVER_Error* absent = TRITONBACKEND_RequestInput(request_, name, &input);
    if (absent) TRITONSERVER_ErrorDelete(absent);
    return absent == nullptr;
}

const void* Request::located(const char* name, TRITONSERVER_DataType type, size_t size, size_t dimensions,
                             std::vector<int64_t>& shape, Place& place) {
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
        std::string wanted = dimensions ? std::to_string(dimensions) + " sides" : "sides";
        throw Refusal(sentence("%s is %s with %llu bytes; it must have %s of 1 to %lld and %zu bytes an element", name,
                               sides_text.c_str(), (unsigned long long)bytes, wanted.c_str(), (long long)LARGEST_SIDE, size));
    }
    std::vector<char> pieces;
    for (uint32_t i = 0; i < buffers; i++) {
        const void* buffer;
        uint64_t part;
        place = device_.place();
        check(TRITONBACKEND_InputBuffer(input, i, &buffer, &part, &place.memory, &place.id));
        if (buffers == 1) return buffer;
        pieces.resize(pieces.size() + part);
        fetch(pieces.data() + pieces.size() - part, buffer, part, place);
    }
    place = {};
    return host_.emplace_back(std::move(pieces)).data();
}

const void* Request::reached(const void* data, size_t bytes, Place place) {
    if (device_.reaches(data, place)) return data;
    void* copy = device_.scratch(bytes);
    device_.copy(copy, data, bytes);
    return copy;
}

void Request::fetch(void* to, const void* from, size_t bytes, Place place) {
    if (place.on_host()) {
        memcpy(to, from, bytes);
        return;
    }
    device_.copy(to, from, bytes);
    device_.wait();
}

std::vector<std::string> Request::outputs() const {
    uint32_t count = 0;
    check(TRITONBACKEND_RequestOutputCount(request_, &count));
    std::vector<std::string> names;
    for (uint32_t i = 0; i < count; i++) {
        const char* name;
        check(TRITONBACKEND_RequestOutputName(request_, i, &name));
        names.push_back(name);
    }
    return names;
}

// place: where the output is wanted, and where it then lies.
void* Request::allocated(const char* name, TRITONSERVER_DataType type, size_t bytes, const std::vector<int64_t>& shape,
                         Place& place) {
    std::vector<std::string> asked = outputs();
    if (std::find(asked.begin(), asked.end(), name) == asked.end()) return nullptr;
    TRITONBACKEND_Output* output;
    check(TRITONBACKEND_ResponseOutput(response_, &output, name, type, shape.data(), (uint32_t)shape.size()));
    void* buffer;
    check(TRITONBACKEND_OutputBuffer(output, &buffer, bytes, &place.memory, &place.id));
    if (!buffer && bytes) throw std::bad_alloc();  // an ensemble's memory for a tensor; Triton calls that a success
    return buffer;
}

void Request::put_bytes(const char* name, TRITONSERVER_DataType type, const std::vector<int64_t>& shape, const char* first,
                        size_t bytes) {
    Place place;
    void* to = allocated(name, type, bytes, shape, place);
    if (to && place.on_host()) memcpy(to, first, bytes);
    if (to && !place.on_host()) deliveries_.push_back({to, host_.emplace_back(first, first + bytes).data(), bytes});
}

void Request::put(const char* name, const std::string& text) {
    std::string value;
    for (int shift = 0; shift < 32; shift += 8) value += (char)(text.size() >> shift);
    value += text;
    put_bytes(name, TYPE_BYTES, {1}, value.data(), value.size());
}

void* Request::allocated_on_device(const char* name, TRITONSERVER_DataType type, size_t size,
                                   const std::vector<int64_t>& shape) {
    for (int64_t side : shape) size *= (size_t)side;
    Place place = device_.place();
    void* buffer = allocated(name, type, size, shape, place);
    if (!buffer || device_.reaches(buffer, place)) return buffer;
    void* scratch = device_.scratch(size);
    deliveries_.push_back({buffer, scratch, size});
    return scratch;
}

void Request::finish() {
    for (const Delivery& delivery : deliveries_) device_.copy(delivery.to, delivery.from, delivery.bytes);
    device_.wait();
    device_.recycle();
    finished_ = true;
}
