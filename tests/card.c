// A driver with one card, what no test machine here has; the environment tells its name, compute capability and CUDA (12040
// for 12.4; 13.0 unless told).
#include <stdlib.h>
#include <string.h>

int cuInit(unsigned flags) { return (int)flags; }
int cuDeviceGetCount(int* count) { return *count = 1, 0; }
int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, 0; }
int cuDeviceGetName(char* name, int size, int device) {
    return strncpy(name, getenv("CARD_NAME"), (size_t)size), device;
}
int cuDeviceGetAttribute(int* value, int attribute, int device) {
    int capability = atoi(getenv("CARD_CAPABILITY"));
    return *value = attribute == 75 ? capability / 10 : capability % 10, device;
}
int cuDriverGetVersion(int* version) {
    const char* cuda = getenv("CARD_CUDA");
    return *version = cuda ? atoi(cuda) : 13000, 0;
}
