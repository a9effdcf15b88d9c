#include "cuda_library.h"

#include "device.h"

#include <dlfcn.h>

#include <filesystem>
#include <stdexcept>
#include <string>

static const char* NAME = "libexposure_kernels_cuda.so";

// The folder of this backend; a link to it, as in a server's backend folder, is followed.
static std::filesystem::path own_folder() {
    Dl_info here{};
    dladdr(reinterpret_cast<const void*>(&own_folder), &here);
    return std::filesystem::canonical(here.dli_fname).parent_path();
}

template <class Function>
static void load(void* library, const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    if (!function)
        throw std::runtime_error(std::string(NAME) + " has no " + name + "; it is of another version: rebuild it with pip");
}

static CudaLibrary loaded() {
    std::filesystem::path path = own_folder() / NAME;
    if (!std::filesystem::exists(path))
        throw std::runtime_error(path.string() + " is not built, and a GPU instance needs it; install the project with pip "
                                                 "where nvcc is found, or set KIND_CPU in instance_group");
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) throw std::runtime_error(dlerror());
    CudaLibrary cuda{};
    load(library, "exposure_cuda_error", cuda.error);
    load(library, "exposure_cuda_use", cuda.use);
    load(library, "exposure_cuda_allocate", cuda.allocate);
    load(library, "exposure_cuda_free", cuda.free);
    load(library, "exposure_cuda_copy", cuda.copy);
    load(library, "exposure_cuda_open", cuda.open);
    load(library, "exposure_cuda_close", cuda.close);
    load(library, "exposure_cuda_wait", cuda.wait);
    load(library, "exposure_cuda_pack", cuda.pack);
    load(library, "exposure_cuda_unpack", cuda.unpack);
    load(library, "exposure_cuda_expose", cuda.expose);
    return cuda;
}

const CudaLibrary& cuda() {
    static const CudaLibrary cuda = loaded();
    return cuda;
}

void check_cuda(int32_t error) {
    if (!error) return;
    std::string why = "CUDA error " + std::to_string(error) + ": " + cuda().error(error);
    if (error == 2) throw Full("the card's memory does not suffice now (" + why + ")");  // cudaErrorMemoryAllocation
    throw std::runtime_error(why);
}
