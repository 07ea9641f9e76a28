// Checks for the C test programs. A check that fails prints where, what was found and what was wanted, and ends the
// process with code 1 at once: other ranks' threads may be waiting for the one that failed.
#ifndef MAGI_CTEST_H
#define MAGI_CTEST_H

#include <magi_attn.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Code that ctest counts as skipped.
#define TEST_SKIPPED 77

#define FAIL(...)                                                                                                      \
    do {                                                                                                               \
        fprintf(stderr, "%s:%d: ", __FILE__, __LINE__);                                                                \
        fprintf(stderr, __VA_ARGS__);                                                                                  \
        fputc('\n', stderr);                                                                                           \
        fflush(NULL);                                                                                                  \
        _Exit(1);                                                                                                      \
    } while (0)

// Ends the program as skipped, for the reason given.
#define SKIP(...)                                                                                                      \
    do {                                                                                                               \
        printf("skipped: ");                                                                                           \
        printf(__VA_ARGS__);                                                                                           \
        putchar('\n');                                                                                                 \
        fflush(NULL);                                                                                                  \
        _Exit(TEST_SKIPPED);                                                                                           \
    } while (0)

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition))                                                                                              \
            FAIL("%s does not hold", #condition);                                                                      \
    } while (0)

#define CHECK_INT(have, want)                                                                                          \
    do {                                                                                                               \
        const long long have_ = (long long)(have), want_ = (long long)(want);                                          \
        if (have_ != want_)                                                                                            \
            FAIL("%s is %lld, must be %lld", #have, have_, want_);                                                     \
    } while (0)

#define CHECK_TEXT(have, want)                                                                                         \
    do {                                                                                                               \
        const char *const have_ = (have), *const want_ = (want);                                                       \
        if (have_ == NULL || strcmp(have_, want_) != 0)                                                                \
            FAIL("%s is \"%s\", must be \"%s\"", #have, have_ ? have_ : "(NULL)", want_);                              \
    } while (0)

// The text holds the other text somewhere.
#define CHECK_HAS(have, part)                                                                                          \
    do {                                                                                                               \
        const char *const have_ = (have), *const part_ = (part);                                                       \
        if (have_ == NULL || strstr(have_, part_) == NULL)                                                             \
            FAIL("%s is \"%s\", which does not mention \"%s\"", #have, have_ ? have_ : "(NULL)", part_);               \
    } while (0)

// |have - want| <= bound; a NaN on either side fails.
#define CHECK_NEAR(have, want, bound)                                                                                  \
    do {                                                                                                               \
        const double have_ = (have), want_ = (want), bound_ = (bound);                                                 \
        if (!(fabs(have_ - want_) <= bound_))                                                                          \
            FAIL("%s is %.17g, must be %.17g within %g", #have, have_, want_, bound_);                                 \
    } while (0)

// The call succeeds.
#define CHECK_OK(call)                                                                                                 \
    do {                                                                                                               \
        const int32_t status_ = (int32_t)(call);                                                                       \
        if (status_ != 0)                                                                                              \
            FAIL("%s gave %d: %s", #call, (int)status_, magi_last_error_message());                                    \
    } while (0)

// The call fails with `want`, and the message mentions `part`.
#define CHECK_ERROR(call, want, part)                                                                                  \
    do {                                                                                                               \
        const int32_t status_ = (int32_t)(call);                                                                       \
        if (status_ != (int32_t)(want))                                                                                \
            FAIL("%s gave %d, must give %d: %s", #call, (int)status_, (int)(want), magi_last_error_message());         \
        CHECK_HAS(magi_last_error_message(), part);                                                                    \
    } while (0)

// As CHECK_ERROR, and the message starts with the name of the function that was called.
#define CHECK_REFUSED(call, want, part)                                                                                \
    do {                                                                                                               \
        CHECK_ERROR(call, want, part);                                                                                 \
        check_function_named(#call, __FILE__, __LINE__);                                                               \
    } while (0)

static inline void check_function_named(const char *call, const char *file, int line) {
    const size_t length = strcspn(call, "(");
    const char *message = magi_last_error_message();
    if (strncmp(message, call, length) != 0 || message[length] != ':') {
        FAIL("from %s:%d: \"%s\" does not name the function of %s", file, line, message, call);
    }
}

#endif
