// The consumer warpgroups of wide heads. dK and dV of a tile of 64 keys fill the registers of one warpgroup each. The
// first has S, P and dV, the second dP, dS and dK: P and dS become factors straight from registers, and nothing is
// computed twice. P goes to the second through shared memory, in f32; dS goes to the third, which has dQ.
// Each waits only for what it is handed. SPDX-License-Identifier: Apache-2.0
#pragma once
#include "backward_wide_gradients.cuh"
#include "backward_wide_queries.cuh"
#include "backward_wide_scores.cuh"

DEV void consume(const magi_attn_backward_params &p, Shared &s, int group, int tid) {
    if (group == 0) {
        setmaxnreg_inc<SCORES_REGS>();
        consume_scores(p, s, tid);
    } else if (group == 1) {
        setmaxnreg_inc<CONSUMER_REGS>();
        consume_gradients(p, s, tid);
#if DQ
    } else {
        setmaxnreg_dec<DQ_REGS>();
        consume_queries(p, s, tid);
#endif
    }
}
