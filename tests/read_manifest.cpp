// The server's own reading of a manifest, as a program: prints the sentence of a refusal, or "trusted", and the largest
// planes where they are bounded.
#include <cstdio>
#include <exception>

#include "../kernels/backend/manifest.h"

int main(int, char** arguments) {
    try {
        Manifest manifest = read_manifest(arguments[1]);
        if (manifest.largest_width > 0)
            return printf("trusted up to %dx%d\n", (int)manifest.largest_height, (int)manifest.largest_width), 0;
    } catch (const std::exception& error) {
        return puts(error.what()), 1;
    }
    return puts("trusted"), 0;
}
