// The version that a program was compiled against is the version of the library it runs with.
#include "test.h"

int main(void) {
    CHECK_INT(magi_version(), MAGI_VERSION);
    CHECK_INT(MAGI_VERSION, MAGI_VERSION_MAJOR * 10000 + MAGI_VERSION_MINOR * 100 + MAGI_VERSION_PATCH);
    char text[32];
    snprintf(text, sizeof text, "%d.%d.%d", MAGI_VERSION_MAJOR, MAGI_VERSION_MINOR, MAGI_VERSION_PATCH);
    CHECK_TEXT(magi_version_string(), text);
    return 0;
}
