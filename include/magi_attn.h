/*
 * libmagi_attn: attention over very long sequences and irregular masks, on one device or many.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * Generated from src/ffi by cbindgen; not to be edited. The comments here are the reference of the C ABI;
 * docs/abi.md holds its conventions and the table of thread rules.
 */

#ifndef MAGI_ATTN_H
#define MAGI_ATTN_H

#include <stddef.h>
#include <stdint.h>

/* A CUDA stream: a cudaStream_t or CUstream passes without a cast. NULL on the CPU backend. */
typedef struct CUstream_st *magi_stream;

/**
 * Major version of this header. With major version 0, a new minor version may change the ABI.
 */
#define MAGI_VERSION_MAJOR 0

/**
 * Minor version of this header.
 */
#define MAGI_VERSION_MINOR 1

/**
 * Patch version of this header.
 */
#define MAGI_VERSION_PATCH 0

/**
 * Version of this header as one number, `major * 10000 + minor * 100 + patch`.
 */
#define MAGI_VERSION (((MAGI_VERSION_MAJOR * 10000) + (MAGI_VERSION_MINOR * 100)) + MAGI_VERSION_PATCH)

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Version of the library that was loaded, as one number to compare with `MAGI_VERSION`.
 *
 * Thread-safe; never fails.
 */
int32_t magi_version(void);

/**
 * Version of the library that was loaded, as text such as "0.1.0". Static: never freed.
 *
 * Thread-safe; never fails.
 */
const char *magi_version_string(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* MAGI_ATTN_H */
