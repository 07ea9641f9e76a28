// The two functions that only the test-only build of the library has.
#ifndef MAGI_CTEST_FAULT_H
#define MAGI_CTEST_FAULT_H

#include "ranks.h"

#ifdef __cplusplus
extern "C" {
#endif
// Makes the point fail on `rank` (-1: any) from hit number `after` on: with a panic when `status` is 0.
magi_status magi_test_fault_set(const char *point, int64_t rank, int32_t status, uint32_t after);
void magi_test_fault_clear(void);
#ifdef __cplusplus
}
#endif

#endif
