// The server's own reading of a manifest, as a program: prints the sentence of a refusal, or "trusted".
#include <cstdio>
#include <exception>

#include "../kernels/backend/manifest.h"

int main(int, char** arguments) {
    try {
        read_manifest(arguments[1]);
    } catch (const std::exception& error) {
        return puts(error.what()), 1;
    }
    return puts("trusted"), 0;
}
