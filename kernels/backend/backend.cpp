// The Triton backend `exposure`: one shared object; the `op` parameter of a model's configuration says which of the four
// it is. Life cycle, statistics and errors are here; what a model computes is in the file of its name.
#include <algorithm>
#include <chrono>
#include <cstdlib>

#include "admission.h"
#include "manifest.h"
#include "models.h"

namespace {

struct Configured {
    std::string op, engine;
    int instances;
    bool gives_original;
};

struct Instance {
    std::unique_ptr<Device> device;
    std::unique_ptr<Model> model;
    bool behind_pack;  // works on requests that were let in
};

// Run `work`; an exception becomes an error that Triton reports.
template <class Work>
TRITONSERVER_Error* guarded(Work work) {
    try {
        work();
        return nullptr;
    } catch (const Refusal& refusal) {
        return TRITONSERVER_ErrorNew(ERROR_INVALID_ARGUMENT, refusal.what());
    } catch (const Busy& busy) {
        return TRITONSERVER_ErrorNew(ERROR_UNAVAILABLE, busy.what());
    } catch (const Full& full) {
        return TRITONSERVER_ErrorNew(ERROR_UNAVAILABLE, full.what());
    } catch (const std::bad_alloc&) {
        return TRITONSERVER_ErrorNew(ERROR_UNAVAILABLE, "the server's memory does not suffice now");
    } catch (const std::exception& error) {
        std::string line = error.what();  // OpenVINO's are of several lines
        std::replace(line.begin(), line.end(), '\n', ' ');
        return TRITONSERVER_ErrorNew(ERROR_INTERNAL, line.c_str());
    }
}

// What is said where nobody is left to be told.
void drop(TRITONSERVER_Error* error) {
    if (error) TRITONSERVER_ErrorDelete(error);
}

uint64_t now_ns() {
    auto since = std::chrono::steady_clock::now().time_since_epoch();
    return (uint64_t)std::chrono::duration_cast<std::chrono::nanoseconds>(since).count();
}

Configured configured(TRITONBACKEND_Model* model) {
    TRITONSERVER_Message* message;
    check(TRITONBACKEND_ModelConfig(model, 1, &message));
    const char* base;
    size_t size;
    check(TRITONSERVER_MessageSerializeToJson(message, &base, &size));
    std::string json(base, size);
    check(TRITONSERVER_MessageDelete(message));
    auto parameter = [&](const char* key) {
        size_t start = json.find('"' + std::string(key) + "\":{\"string_value\"");
        return start == std::string::npos ? "" : json_value(json.substr(start), "string_value");
    };
    int artifact;
    const char* location;
    check(TRITONBACKEND_ModelRepository(model, &artifact, &location));
    if (artifact != ARTIFACT_FILESYSTEM) throw std::runtime_error("the model repository must be a folder");
    size_t group = json.find("\"instance_group\"");
    std::string count = group == std::string::npos ? "" : json_value(json.substr(group), "count");
    return {parameter("op"), std::string(location) + "/../denoiser/1/" + parameter("engine"),
            std::max(1, atoi(count.c_str())), json.find("\"ORIGIN_IMAGE\"") != std::string::npos};
}

std::unique_ptr<Model> made(const Configured& c, int threads) {
    if (c.op == "pack") return make_pack(c.engine);
    if (c.op == "denoise") return make_denoise(c.engine, threads, c.gives_original);
    if (c.op == "expose") return make_expose();
    if (c.op == "unpack") return make_unpack();
    throw std::runtime_error("op is '" + c.op + "'; it must be pack, denoise, expose or unpack");
}

Instance opened(const Configured& c, TRITONBACKEND_ModelInstance* instance) {
    TRITONSERVER_InstanceGroupKind kind;
    int32_t card;
    check(TRITONBACKEND_ModelInstanceKind(instance, &kind));
    check(TRITONBACKEND_ModelInstanceDeviceId(instance, &card));
    if (kind == KIND_GPU && c.op == "denoise")
        throw std::runtime_error("op denoise computes on a CPU; set KIND_CPU in its instance_group");
    if (c.op == "pack" && c.engine.substr(c.engine.rfind('/') + 1) != "openvino") admission().passes_are_not_seen();
    static const int cores = exposure_cpu_cores("");
    int threads = std::max(1, cores / c.instances);
    auto device = kind == KIND_GPU ? make_gpu_device(card) : make_cpu_device(threads);
    return {std::move(device), made(c, threads), c.op != "pack"};
}

void answer(const Instance& self, TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request* request) {
    uint64_t start = now_ns();
    if (self.behind_pack) admission().began();
    TRITONBACKEND_Response* response = nullptr;
    TRITONSERVER_Error* error = TRITONBACKEND_ResponseNew(&response, request);
    bool success = false;
    if (error == nullptr) {
        error = guarded([&] {
            Request tensors(request, response, *self.device);
            self.model->answer(tensors);
            tensors.finish();
        });
        success = error == nullptr;
        drop(TRITONBACKEND_ResponseSend(response, RESPONSE_COMPLETE_FINAL, error));  // an error: the client is gone
    }
    drop(error);
    uint64_t end = now_ns();
    drop(TRITONBACKEND_ModelInstanceReportStatistics(instance, request, success, start, start, end, end));
    if (success) drop(TRITONBACKEND_ModelInstanceReportBatchStatistics(instance, 1, start, start, end, end));
    drop(TRITONBACKEND_RequestRelease(request, REQUEST_RELEASE_ALL));
    if (self.behind_pack) admission().ended();
}

// --backend-config=exposure,megapixels-in-flight=N of tritonserver.
void configure(TRITONBACKEND_Backend* backend) {
    TRITONSERVER_Message* message;
    check(TRITONBACKEND_BackendConfig(backend, &message));
    const char* base;
    size_t size;
    check(TRITONSERVER_MessageSerializeToJson(message, &base, &size));
    std::string megapixels = json_value(std::string(base, size), "megapixels-in-flight");
    if (megapixels.empty()) return;
    int64_t limit = atoll(megapixels.c_str());
    if (limit < 1 || limit > 1000000)
        throw std::runtime_error("megapixels-in-flight is '" + megapixels + "'; it must be 1 to 1000000");
    admission().limit_to(limit);
}

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED TRITONSERVER_Error* TRITONBACKEND_Initialize(TRITONBACKEND_Backend* backend) {
    return guarded([&] {
        uint32_t major, minor;
        check(TRITONBACKEND_ApiVersion(&major, &minor));
        if (major != 1)
            throw std::runtime_error(sentence("Triton's backend API is version %u; this backend knows version 1", major));
        configure(backend);
    });
}

EXPORTED TRITONSERVER_Error* TRITONBACKEND_ModelInitialize(TRITONBACKEND_Model* model) {
    return guarded([&] { check(TRITONBACKEND_ModelSetState(model, new Configured(configured(model)))); });
}

EXPORTED TRITONSERVER_Error* TRITONBACKEND_ModelFinalize(TRITONBACKEND_Model* model) {
    return guarded([&] {
        void* state;
        check(TRITONBACKEND_ModelState(model, &state));
        delete static_cast<Configured*>(state);
    });
}

EXPORTED TRITONSERVER_Error* TRITONBACKEND_ModelInstanceInitialize(TRITONBACKEND_ModelInstance* instance) {
    return guarded([&] {
        TRITONBACKEND_Model* model;
        void* state;
        check(TRITONBACKEND_ModelInstanceModel(instance, &model));
        check(TRITONBACKEND_ModelState(model, &state));
        Instance opened_instance = opened(*static_cast<Configured*>(state), instance);
        check(TRITONBACKEND_ModelInstanceSetState(instance, new Instance(std::move(opened_instance))));
    });
}

EXPORTED TRITONSERVER_Error* TRITONBACKEND_ModelInstanceFinalize(TRITONBACKEND_ModelInstance* instance) {
    return guarded([&] {
        void* state;
        check(TRITONBACKEND_ModelInstanceState(instance, &state));
        delete static_cast<Instance*>(state);
    });
}

EXPORTED TRITONSERVER_Error* TRITONBACKEND_ModelInstanceExecute(
    TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request** requests, uint32_t count) {
    void* state;
    TRITONSERVER_Error* error = TRITONBACKEND_ModelInstanceState(instance, &state);
    if (error) return error;  // the requests stay Triton's
    for (uint32_t i = 0; i < count; i++) answer(*static_cast<Instance*>(state), instance, requests[i]);
    return nullptr;
}
