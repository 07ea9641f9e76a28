// NVRTC for devices that run no cubins: what it compiles is an ELF magic number, which is all that the driver beside it
// looks at. With it, devices of every compute capability have kernels, also where the library was built without nvcc.
#include <cstddef>
#include <cstring>

static const char image[] = "\x7f"
                            "ELF";

extern "C" {
int nvrtcVersion(int *major, int *minor) {
    *major = 13;
    *minor = 0;
    return 0;
}
const char *nvrtcGetErrorString(int) {
    return "an error";
}
int nvrtcCreateProgram(void **program, const char *, const char *, int, const char *const *, const char *const *) {
    *program = const_cast<char *>(image);
    return 0;
}
int nvrtcDestroyProgram(void **program) {
    *program = nullptr;
    return 0;
}
int nvrtcCompileProgram(void *, int, const char *const *) {
    return 0;
}
int nvrtcGetProgramLogSize(void *, size_t *size) {
    *size = 1;
    return 0;
}
int nvrtcGetProgramLog(void *, char *log) {
    *log = 0;
    return 0;
}
int nvrtcGetCUBINSize(void *, size_t *size) {
    *size = sizeof image;
    return 0;
}
int nvrtcGetCUBIN(void *, char *cubin) {
    memcpy(cubin, image, sizeof image);
    return 0;
}
}
