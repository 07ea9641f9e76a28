// What a program outside the project sees: the header, and a library of the same version.
#include <magi_attn.h>

#include <iostream>

int main() {
    std::cout << "magi_attn " << magi_version_string() << "\n";
    if (magi_version() != MAGI_VERSION) {
        std::cerr << "header " << MAGI_VERSION << ", library " << magi_version() << "\n";
        return 1;
    }
    return 0;
}
