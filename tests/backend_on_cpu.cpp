// The backend's models on the stand-in GPU (device_on_cpu.cpp): inputs on the host and on the card, outputs wherever the
// server puts them, refusals, no room; each answer equal to the CPU device's. The few functions of Triton that a request
// needs are played by this program; the real server has no part in it.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <thread>

#include "../kernels/backend/admission.h"
#include "../kernels/backend/cuda_library.h"
#include "../kernels/backend/manifest.h"
#include "../kernels/backend/models.h"

// A plan's manifest when the folder is "plan": planes up to 32x48.
Manifest read_manifest(const std::string& folder) {
    Manifest manifest{15583.0, 16, "f32", "c0ffee"};
    if (folder == "plan") manifest.largest_height = 32, manifest.largest_width = 48;
    return manifest;
}

struct TRITONSERVER_Error {
    std::string message;
};

struct TRITONBACKEND_Input {
    TRITONSERVER_DataType type;
    std::vector<int64_t> shape;
    std::vector<std::pair<void*, uint64_t>> pieces;
    Place place;
};

struct TRITONBACKEND_Output {
    std::vector<int64_t> shape;
    void* memory = nullptr;
    uint64_t bytes = 0;
    Place place;
};

struct TRITONBACKEND_Request {
    std::map<std::string, TRITONBACKEND_Input> inputs;
    std::vector<std::string> outputs;
};

struct TRITONBACKEND_Response {
    std::map<std::string, TRITONBACKEND_Output> outputs;
};

// Where the server puts outputs: as asked, or all in one place.
enum Placement { AS_ASKED, ON_HOST, ON_CARD, ON_OTHER_CARD, NOWHERE };
static thread_local Placement placement = AS_ASKED;
static thread_local std::string no_room_for;  // the name of an output

extern "C" {
const char* TRITONSERVER_ErrorMessage(TRITONSERVER_Error* error) { return error->message.c_str(); }
void TRITONSERVER_ErrorDelete(TRITONSERVER_Error* error) { delete error; }

TRITONSERVER_Error* TRITONBACKEND_RequestInput(TRITONBACKEND_Request* request, const char* name, TRITONBACKEND_Input** input) {
    if (!request->inputs.count(name)) return new TRITONSERVER_Error{std::string("no input ") + name};
    *input = &request->inputs[name];
    return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_InputProperties(TRITONBACKEND_Input* input, const char**, TRITONSERVER_DataType* type,
                                                  const int64_t** shape, uint32_t* dimensions, uint64_t* byte_size,
                                                  uint32_t* buffer_count) {
    *type = input->type;
    *shape = input->shape.data();
    *dimensions = (uint32_t)input->shape.size();
    *byte_size = 0;
    for (auto& piece : input->pieces) *byte_size += piece.second;
    *buffer_count = (uint32_t)input->pieces.size();
    return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_InputBuffer(TRITONBACKEND_Input* input, uint32_t index, const void** buffer,
                                              uint64_t* byte_size, TRITONSERVER_MemoryType* memory, int64_t* id) {
    *buffer = input->pieces[index].first;
    *byte_size = input->pieces[index].second;
    *memory = input->place.memory;
    *id = input->place.id;
    return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_RequestOutputCount(TRITONBACKEND_Request* request, uint32_t* count) {
    *count = (uint32_t)request->outputs.size();
    return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_RequestOutputName(TRITONBACKEND_Request* request, uint32_t index, const char** name) {
    *name = request->outputs[index].c_str();
    return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_ResponseOutput(TRITONBACKEND_Response* response, TRITONBACKEND_Output** output,
                                                 const char* name, TRITONSERVER_DataType, const int64_t* shape,
                                                 uint32_t dimensions) {
    if (name == no_room_for) return new TRITONSERVER_Error{"the server has no room"};
    *output = &response->outputs[name];
    (*output)->shape.assign(shape, shape + dimensions);
    return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_OutputBuffer(TRITONBACKEND_Output* output, void** buffer, uint64_t byte_size,
                                               TRITONSERVER_MemoryType* memory, int64_t* id) {
    Place place{*memory, *id};
    if (placement == ON_HOST) place = {MEMORY_CPU_PINNED, 0};
    if (placement == ON_CARD) place = {MEMORY_GPU, 0};
    if (placement == ON_OTHER_CARD) place = {MEMORY_GPU, 1};
    if (placement == NOWHERE) {  // what Triton says where an ensemble gets no memory for a tensor
        output->memory = nullptr;
    } else if (place.on_host()) {
        output->memory = malloc(byte_size);
    } else if (cuda().allocate(&output->memory, byte_size)) {
        return new TRITONSERVER_Error{"the server has no room on the card"};
    }
    output->bytes = byte_size;
    output->place = place;
    *buffer = output->memory;
    *memory = place.memory;
    *id = place.id;
    return nullptr;
}
}

static void* on_card(const void* from, uint64_t bytes) {
    void* memory;
    check_cuda(cuda().allocate(&memory, bytes));
    check_cuda(cuda().copy(memory, from, bytes, nullptr));
    return memory;
}

// A request and its answer, and all memory that they take.
struct Exchange {
    TRITONBACKEND_Request request;
    TRITONBACKEND_Response response;
    uint64_t shift = 0;  // bytes from the start of memory to an input, as in a client's shared memory

    Exchange() = default;
    Exchange(const Exchange&) = delete;
    ~Exchange() {
        for (auto& [name, input] : request.inputs)
            for (auto& piece : input.pieces) release(static_cast<char*>(piece.first) - shift, input.place);
        for (auto& [name, output] : response.outputs) release(output.memory, output.place);
    }

    template <class T>
    void give(const char* name, std::vector<int64_t> shape, const std::vector<T>& values, Place place, bool in_two = false) {
        TRITONBACKEND_Input& input = request.inputs[name];
        input = {type_of<T>(), shape, {}, place};
        const char* bytes = reinterpret_cast<const char*>(values.data());
        uint64_t size = values.size() * sizeof(T), first = in_two ? size / 2 / sizeof(T) * sizeof(T) : size;
        for (auto [start, count] : {std::pair<uint64_t, uint64_t>{0, first}, {first, size - first}}) {
            if (!count) continue;
            std::vector<char> held(shift);
            held.insert(held.end(), bytes + start, bytes + start + count);
            void* memory = place.on_host() ? memcpy(malloc(held.size()), held.data(), held.size())
                                           : on_card(held.data(), held.size());
            input.pieces.emplace_back(static_cast<char*>(memory) + shift, count);
        }
    }

    // "" or the sentence of a refusal or failure.
    std::string answered_by(Model& model, Device& device) {
        try {
            Request tensors(&request, &response, device);
            model.answer(tensors);
            tensors.finish();
            return "";
        } catch (const std::exception& error) {
            return error.what();
        }
    }

    std::vector<char> bytes(const std::string& name) {
        TRITONBACKEND_Output& output = response.outputs.at(name);
        std::vector<char> bytes(output.bytes);
        if (output.place.on_host())
            memcpy(bytes.data(), output.memory, output.bytes);
        else
            check_cuda(cuda().copy(bytes.data(), output.memory, output.bytes, nullptr));
        return bytes;
    }

    static void release(void* memory, Place place) {
        if (place.on_host())
            free(memory);
        else
            cuda().free(memory);
    }
};

// How a request's inputs lie: bit 0: pixels on the card; bit 1: small values on the card; bit 2: in two pieces;
// bit 3: at odd places.
static const int WAYS = 16, AT_ODD_PLACES = 8, PIXELS_ON_CARD = 1, VALUES_ON_CARD = 2, IN_TWO = 4;

static Place place_of(bool on_card) { return on_card ? Place{MEMORY_GPU, 0} : Place{}; }

static std::vector<float> some_floats(size_t count, uint32_t state) {
    std::vector<float> floats(count);
    for (auto& x : floats) x = (float)((state = state * 1664525u + 1013904223u) >> 8) / 14000000.0f - 0.1f;
    return floats;
}

static void give_sensor(Exchange& exchange, Place place) {
    exchange.give<uint8_t>("CFA", {2, 2}, {1, 0, 2, 1}, place);
    exchange.give<float>("BLACK", {4}, {500, 510, 520, 530}, place);
    exchange.give<float>("WHITE", {1}, {16383}, place);
}

static void ask_pack(Exchange& e, int way, int height, int width, float ratio = 50) {
    uint32_t state = 1;
    std::vector<uint16_t> mosaic(height * width);
    for (auto& dn : mosaic) dn = (uint16_t)((state = state * 1664525u + 1013904223u) >> 18);
    e.give<uint16_t>("MOSAIC", {height, width}, mosaic, place_of(way & PIXELS_ON_CARD), way & IN_TWO);
    Place values = place_of(way & VALUES_ON_CARD);
    give_sensor(e, values);
    e.give<float>("RATIO", {1}, {ratio}, values);
    e.give<float>("GAIN", {1}, {3}, values);
    e.give<uint64_t>("SEED", {1}, {7}, values);
    e.give<int32_t>("ORIGIN", {2}, {0, 0}, values);
    e.request.outputs = {"IMAGE", "PHOTON_GAIN", "SIZE", "PASS", "STEPS_2", "STEPS_4", "CHECKPOINT"};  // no TICKET: as if alone
}

static void ask_expose(Exchange& e, int way, int height, int width, float photons = 300, int32_t pass = 0) {
    size_t pixels = 4 * height * width;
    Place values = place_of(way & VALUES_ON_CARD);
    e.give<float>("CLEAN", {1, 4, height, width}, some_floats(pixels, 2), place_of(way & PIXELS_ON_CARD), way & IN_TWO);
    e.give<float>("ORIGIN_IMAGE", {1, 4, height, width}, some_floats(pixels, 3), {});  // always on the host: mixed with CLEAN
    e.give<float>("STEPS", {2, 4}, {1, photons, 0.1f, 0.003f, 2, 0, 0, 0}, values);
    e.give<int32_t>("PASS", {1}, {pass}, values);
    e.give<uint64_t>("SEED", {1}, {1ull << 63 | 5}, values);
    e.give<int32_t>("ORIGIN", {2}, {6, 10}, values);
    e.request.outputs = {"IMAGE", "PHOTON_GAIN", "NEXT_PASS"};
}

static void ask_unpack(Exchange& e, int way, int height, int width, int offered = 0) {
    int h = (height + 1) / 2 + 3 - offered, w = (width + 1) / 2 + 5;
    Place values = place_of(way & VALUES_ON_CARD);
    e.give<float>("CLEAN", {1, 4, h, w}, some_floats(4 * h * w, 4), place_of(way & PIXELS_ON_CARD), way & IN_TWO);
    e.give<int32_t>("SIZE", {2}, {height, width}, values);
    give_sensor(e, values);
    e.request.outputs = {"DENOISED"};
}

static int failures = 0;

static void expect(bool good, const std::string& what) {
    if (!good) printf("FAILED: %s\n", what.c_str()), failures++;
}

// One kind of request in every way, on both devices, against the CPU device with everything on the host.
template <class Ask>
static void every_way(const char* name, Model& model, Ask ask) {
    auto cpu = make_cpu_device(2), gpu = make_gpu_device(0);
    for (auto [height, width] : {std::pair<int, int>{32, 48}, {33, 47}, {130, 61}}) {
        placement = AS_ASKED;
        Exchange plain;
        ask(plain, 0, height, width);
        std::string refusal = plain.answered_by(model, *cpu);
        expect(refusal.empty(), std::string(name) + " alone: " + refusal);
        for (Device* device : {cpu.get(), gpu.get()})
            for (int way = 0; way < WAYS; way++)
                for (Placement placed : {AS_ASKED, ON_HOST, ON_CARD, ON_OTHER_CARD}) {
                    placement = placed;
                    Exchange other;
                    other.shift = way & AT_ODD_PLACES ? 2 : 0;
                    ask(other, way, height, width);
                    std::string label = sentence("%s %dx%d %s way %d placement %d", name, height, width,
                                                 device == gpu.get() ? "gpu" : "cpu", way, placed);
                    refusal = other.answered_by(model, *device);
                    expect(refusal.empty(), label + ": " + refusal);
                    for (auto& [output, expected] : plain.response.outputs)
                        expect(refusal.empty() && other.bytes(output) == plain.bytes(output), label + " " + output);
                    if (device == gpu.get() && placed == AS_ASKED && refusal.empty()) {
                        const char* pixels = plain.response.outputs.count("IMAGE") ? "IMAGE" : "DENOISED";
                        expect(!other.response.outputs[pixels].place.on_host(), label + " left the card");
                    }
                }
    }
}

template <class Ask>
static std::string refusal_of(Model& model, Ask ask) {
    auto gpu = make_gpu_device(0);
    placement = AS_ASKED;
    Exchange bad;
    ask(bad);
    std::string refusal = bad.answered_by(model, *gpu);
    Exchange good;  // and it serves on
    ask_unpack(good, 0, 40, 40);
    expect(good.answered_by(*make_unpack(), *gpu).empty(), "after: " + refusal);
    return refusal;
}

static void refusals(Model& pack, Model& expose, Model& unpack) {
    auto has = [](const std::string& text, const char* part) {
        expect(text.find(part) != std::string::npos, text + " / " + part);
    };
    has(refusal_of(pack, [](Exchange& e) { ask_pack(e, PIXELS_ON_CARD, 40, 40, 0.5f); }), "RATIO is 0.5");
    has(refusal_of(pack, [](Exchange& e) { ask_pack(e, 0, 16, 40); }), "both sides must be at least 32");
    auto of_plan = make_pack("plan");
    for (auto [height, width] : {std::pair{66, 40}, {40, 98}, {65, 33}})  // the last is padded to 96x64
        has(refusal_of(*of_plan, [=](Exchange& e) { ask_pack(e, 0, height, width); }), "the engine takes at most 64x96");
    Exchange largest;
    ask_pack(largest, 0, 64, 96);
    expect(largest.answered_by(*of_plan, *make_cpu_device(1)).empty(), "the largest mosaic of a plan");
    has(refusal_of(expose, [](Exchange& e) { ask_expose(e, 3, 16, 16, -1); }), "it is no schedule");
    for (int32_t pass : {-1, 1, INT32_MAX, INT32_MIN})
        has(refusal_of(expose, [=](Exchange& e) { ask_expose(e, 0, 16, 16, 300, pass); }), "STEPS has 2 rows");
    has(refusal_of(unpack, [](Exchange& e) { ask_unpack(e, 1, 40, 40, 4); }), "SIZE is 40x40; it must be at least 1x1 and fit CLEAN");
    auto large = [](Exchange& e) { ask_expose(e, 0, 1200, 1200); };  // 23 MB a tensor, 64 MiB on the card
    has(refusal_of(expose, large), "out of memory");
}

// The server takes an unfinished answer's memory away: nothing that was queued may write to it later.
static void fails_halfway(Model& expose) {
    auto gpu = make_gpu_device(0);
    for (const char* output : {"PHOTON_GAIN", ""}) {
        placement = AS_ASKED;
        no_room_for = output;
        Exchange e;
        ask_expose(e, PIXELS_ON_CARD, 32, 48);
        expect(e.answered_by(expose, *gpu) == (*output ? "the server has no room" : ""), "halfway");
    }
}

// An output that is not there, though Triton calls it a success, is no answer.
static void needs_memory(Model& expose) {
    auto cpu = make_cpu_device(1);
    placement = NOWHERE;
    Exchange e;
    ask_expose(e, 0, 32, 48);
    std::string refusal = e.answered_by(expose, *cpu);
    expect(refusal == std::bad_alloc().what(), "no memory for an output: " + refusal);
    placement = AS_ASKED;
}

static void admits() {
    uint64_t ticket = 0;
    auto is_busy = [&](Admission& door, int64_t megapixels, Admission::Clock::time_point now) {
        try {
            ticket = door.enter(1000000 * megapixels, now);
        } catch (const Busy&) {
            return true;
        }
        return false;
    };
    Admission door;
    auto now = Admission::Clock::now();
    std::chrono::seconds quiet(5);
    door.limit_to(10);
    expect(!is_busy(door, 60, now), "alone, a request of any size is let in");
    expect(is_busy(door, 4, now), "beyond the limit");
    door.leave(ticket);
    door.leave(ticket);
    door.leave(0);
    expect(!is_busy(door, 6, now) && !is_busy(door, 4, now) && is_busy(door, 4, now), "up to the limit");
    door.leave(ticket);
    expect(!is_busy(door, 4, now) && is_busy(door, 1, now), "one left");
    door.began();  // a long pass
    expect(is_busy(door, 1, now + quiet), "a model computes");
    door.ended(now);
    for (int i = 0; i < 20; i++) expect(is_busy(door, 1, now + i * std::chrono::milliseconds(100)), "not yet quiet");
    expect(!is_busy(door, 9, now + quiet), "those that never left are forgotten, however often others asked");
    expect(is_busy(door, 2, now + quiet), "and the one that was let in is counted");

    Admission foreign;  // its passes are a plan's, which nobody tells of
    foreign.passes_are_not_seen();
    foreign.limit_to(10);
    foreign.enter(10 * 1000000, now);
    expect(is_busy(foreign, 1, now + quiet), "a long pass of a plan may be under way");
    expect(!is_busy(foreign, 1, now + std::chrono::seconds(11)), "and is over at last");

    Admission street;  // never quiet: one request was cancelled, others come and go
    street.limit_to(10);
    street.began();
    expect(!is_busy(street, 8, now), "the one that will be cancelled");
    for (int megapixels = 0; megapixels <= 4 * (10 + 8); megapixels++, now += quiet) {
        expect(is_busy(street, 3, now), "it may yet be answered");
        expect(!is_busy(street, 1, now + quiet), "others come, when that does not ask again");
        street.leave(ticket);
    }
    expect(!is_busy(street, 10, now), "it is gone");

    Admission fair;  // small ones would always find room before a large one does
    fair.limit_to(10);
    uint64_t first = fair.enter(4000000, now), second = fair.enter(4000000, now);
    expect(is_busy(fair, 6, now), "a large one waits");
    fair.leave(first);
    expect(is_busy(fair, 4, now) && is_busy(fair, 5, now), "none goes before it");
    expect(!is_busy(fair, 6, now) && is_busy(fair, 4, now), "it has its turn, and the next one waits");
    fair.leave(ticket);
    expect(is_busy(fair, 5, now), "as large as may be, but later");
    expect(!is_busy(fair, 5, now + quiet), "the one that waited does not ask again");
    fair.leave(ticket), fair.leave(second);
    fair.enter(4000000, now + quiet);
    expect(is_busy(fair, 60, now + quiet), "beyond the limit, but for alone");
    fair.leave(++ticket);
    expect(is_busy(fair, 1, now + quiet) && !is_busy(fair, 60, now + quiet), "also where it must be");
}

// What `pack` lets in leaves in `unpack`, or where it fails.
static void leaves(Model& pack, Model& unpack) {
    auto cpu = make_cpu_device(1);
    placement = AS_ASKED;
    auto enters = [&] {
        Exchange e;
        ask_pack(e, 0, 1000, 1000);
        e.request.outputs.push_back("TICKET");
        std::string refusal = e.answered_by(pack, *cpu);
        uint64_t ticket = 0;
        if (refusal.empty()) memcpy(&ticket, e.bytes("TICKET").data(), sizeof ticket);
        return std::make_pair(refusal, ticket);
    };
    admission().limit_to(3);
    auto first = enters(), second = enters();
    expect(first.first.empty() && second.first.empty(), "two of a megapixel: " + first.first + second.first);
    expect(enters().first.find("the server is busy") != std::string::npos, "no third");
    Exchange answered, refused;
    ask_unpack(answered, 0, 40, 40);
    answered.give<uint64_t>("TICKET", {1}, {first.second}, {});
    expect(answered.answered_by(unpack, *cpu).empty(), "answered");
    ask_unpack(refused, 0, 40, 40, 4);
    refused.give<uint64_t>("TICKET", {1}, {second.second}, {});
    expect(!refused.answered_by(unpack, *cpu).empty(), "refused");
    for (const char* output : {"IMAGE", "SIZE", "TICKET"}) {  // fails after it was let in
        no_room_for = output;
        for (int i = 0; i < 5; i++) expect(enters().first == "the server has no room", std::string("no room for ") + output);
        no_room_for = "";
    }
    expect(enters().first.empty() && enters().first.empty(), "both left, and all that failed");
    admission().limit_to(DEFAULT_MEGAPIXELS);
}

static void scratch_is_bounded(Model& unpack, uint64_t (*bytes)()) {
    auto gpu = make_gpu_device(0, 100000);
    for (int side : {40, 600, 64, 50, 600, 40}) {
        placement = ON_HOST;
        Exchange e;
        ask_unpack(e, 0, side, side);
        expect(e.answered_by(unpack, *gpu).empty(), "bounded");
        expect(bytes() <= 100000, sentence("%llu bytes kept", (unsigned long long)bytes()));
    }
    gpu.reset();
    expect(bytes() == 0, "memory left on the card");
}

// Instances of one card, each with its own stream and scratch, at once.
static void concurrently(Model& expose) {
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; t++)
        threads.emplace_back([&expose, t] {
            auto cpu = make_cpu_device(1), gpu = make_gpu_device(0);
            placement = AS_ASKED;
            Exchange plain;
            ask_expose(plain, 0, 20 + t, 30);
            plain.answered_by(expose, *cpu);
            for (int i = 0; i < 10; i++) {
                Exchange other;
                ask_expose(other, i % WAYS, 20 + t, 30);
                std::string refusal = other.answered_by(expose, *gpu);
                expect(refusal.empty() && other.bytes("IMAGE") == plain.bytes("IMAGE"), "concurrent: " + refusal);
            }
        });
    for (auto& thread : threads) thread.join();
}

// Its argument is the folder that it and the stand-in lie in.
int main(int, char** arguments) {
    std::string folder = arguments[1];
    try {
        cuda();
    } catch (const std::exception& error) {
        printf("%s\n", error.what());
        return 2;
    }
    auto pack = make_pack(folder), expose = make_expose(), unpack = make_unpack();
    void* library = dlopen((folder + "/libexposure_kernels_cuda.so").c_str(), RTLD_NOW);
    auto bytes = reinterpret_cast<uint64_t (*)()>(dlsym(library, "device_on_cpu_bytes"));
    every_way("pack", *pack, [](Exchange& e, int way, int h, int w) { ask_pack(e, way, h, w); });
    every_way("expose", *expose, [](Exchange& e, int way, int h, int w) { ask_expose(e, way, h, w); });
    every_way("unpack", *unpack, [](Exchange& e, int way, int h, int w) { ask_unpack(e, way, h, w); });
    refusals(*pack, *expose, *unpack);
    fails_halfway(*expose);
    needs_memory(*expose);
    admits();
    leaves(*pack, *unpack);
    concurrently(*expose);
    expect(bytes() == 0, "memory left on the card");
    scratch_is_bounded(*unpack, bytes);
    printf("%d failures\n", failures);
    return failures != 0;
}
