// What is accepted of draft trees, so that the output is the target's own: choose, then match.
//
// At each node the next token is chosen from the target's logits there, exactly as plain decoding would; if a child of the node holds it,
// the walk goes on there, else it ends, and the chosen token is the next root. With a drafter whose proposals are no samples this is the
// sequential rejection of Leviathan et al. (arXiv 2211.17192) and SpecInfer (arXiv 2305.09781) with q = 1, and token for token the plain
// output of the same seed. A decode step is a tree of one node.
//
// Choosing is the host sampler's, bit for bit: the likeliest token, or one drawn, with one number of a SplitMix64 stream a node, from what
// top-k, top-p and min-p leave, in the order of ids. By the row's list where top-k is within it, else by the whole row.
//
// One block a tree. By lists a warp is enough, bound by latency: a few dependent reads a node. By whole rows a block of 1,024 threads does
// what one multiprocessor can; a block of one warp would give the same tokens, later. All warps walk alike.

#include "common/row_choice.cuh"
#include "common/token_weight.cuh"
#include "common/types.cuh"
#include "common/warp.cuh"

namespace {

// How tokens are chosen; 32 bytes, as launch/accept.rs lays them out.
struct Sampler {
    // log2(e) / temperature; 0 is greedy.
    float scale;
    // 0 keeps all.
    int top_k;
    // In 2^−53.
    u64 top_p;
    u64 min_weight;
    // Of the random stream, before the root's token.
    u64 random;
};

constexpr u64 ALL = 1ull << 53;

// First word of a result.
enum Status { ACCEPTED = 0, BROKEN_LOGITS = 1, NOTHING_FINITE = 2 };

// A row's likeliest tokens, largest logit first: those at `lane_idx()` and 32 behind it, −1 where there is none.
struct List {
    int token[2];
    float logit[2];
    int len;

    __device__ __forceinline__ List(const int* tokens, const float* logits, int k) : len(0) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int idx = half * WARP_SIZE + lane_idx();
            token[half] = idx < k ? tokens[idx] : -1;
            logit[half] = idx < k ? logits[idx] : 0.0f;
            len += __popc(__ballot_sync(FULL_MASK, token[half] >= 0));
        }
    }

    __device__ __forceinline__ float largest() const { return __shfl_sync(FULL_MASK, logit[0], 0); }
    __device__ __forceinline__ float smallest() const {
        return __shfl_sync(FULL_MASK, len > WARP_SIZE ? logit[1] : logit[0], max(len - 1, 0) % WARP_SIZE);
    }
};

// The lowest id of those that equal the largest: −0 equals 0 here, though it comes after it in the list.
__device__ __forceinline__ int likeliest(const List& list) {
    int found = NO_LAST_TOKEN;
    float largest = list.largest();
#pragma unroll
    for (int half = 0; half < 2; half++) {
        if (list.token[half] >= 0 && list.logit[half] == largest) found = min(found, list.token[half]);
    }
#pragma unroll
    for (int distance = WARP_SIZE / 2; distance > 0; distance /= 2) found = min(found, __shfl_xor_sync(FULL_MASK, found, distance));
    return found;
}

// The token at which `number` points of the first `top_k` of the list.
__device__ __forceinline__ int choose_of_list(const List& list, const Sampler& sampler, u64 number) {
    Weigher weigher = {list.largest(), sampler.scale};
    int len = min(list.len, sampler.top_k);
    u64 weight[2], upto[2], before[2] = {0, 0};
#pragma unroll
    for (int half = 0; half < 2; half++) {
        weight[half] = half * WARP_SIZE + lane_idx() < len ? weigher.weight(list.logit[half]) : 0;
    }
    upto[0] = warp_sum_upto(weight[0]);
    upto[1] = warp_sum_upto(weight[1]) + __shfl_sync(FULL_MASK, upto[0], WARP_SIZE - 1);
    u64 total = __shfl_sync(FULL_MASK, upto[1], WARP_SIZE - 1), goal = sampler.top_p < ALL ? goal_of(sampler.top_p, total) : total;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        if (upto[half] - weight[half] >= goal || weight[half] < sampler.min_weight) weight[half] = 0;
    }
    u64 point = point_of(number, warp_sum_u64(weight[0] + weight[1]));
    // What has lower ids.
#pragma unroll 1
    for (int idx = 0; idx < len; idx++) {
        int lane = idx % WARP_SIZE;
        bool is_second = idx >= WARP_SIZE;
        int token = __shfl_sync(FULL_MASK, is_second ? list.token[1] : list.token[0], lane);
        u64 other = __shfl_sync(FULL_MASK, is_second ? weight[1] : weight[0], lane);
        if (token < list.token[0]) before[0] += other;
        if (token < list.token[1]) before[1] += other;
    }
    unsigned first = __ballot_sync(FULL_MASK, before[0] <= point && point - before[0] < weight[0]);
    unsigned second = __ballot_sync(FULL_MASK, before[1] <= point && point - before[1] < weight[1]);
    int lane = __ffs(int(first != 0 ? first : second)) - 1;
    return __shfl_sync(FULL_MASK, first != 0 ? list.token[0] : list.token[1], max(lane, 0));
}

// The token at which `number` points of the whole row.
__device__ __forceinline__ int choose_of_row(const float* logits, int vocab_size, float largest, const Sampler& sampler, u64 number,
                                             RowScratch& scratch) {
    Row row = {logits, vocab_size, {largest, sampler.scale}, 0, 0xffffffffu, NO_LAST_TOKEN, 1, false};
    // One place in the program for both filters.
#pragma unroll 1
    for (int filter = 0; filter < 2; filter++) {
        bool by_number = filter == 0;
        if (by_number ? sampler.top_k == 0 : sampler.top_p >= ALL) continue;
        keep_likeliest(row, by_number, by_number ? u64(sampler.top_k) : sampler.top_p, scratch);
    }
    row.min_weight = max(row.min_weight, sampler.min_weight);
    u64 total = sum_parts(row, 0, vocab_size, scratch);
    return token_at(row, point_of(number, total), scratch);
}

// The first child of `node` that holds `token`, -1 for none; nodes are numbered after their parents.
__device__ __forceinline__ int find_child(const int* tokens, const int* parents, int num_nodes, int node, int token) {
    for (int start = node + 1; start < num_nodes; start += WARP_SIZE) {
        int child = start + lane_idx();
        bool matches = child < num_nodes && parents[child] == node && tokens[child] == token;
        unsigned found = __ballot_sync(FULL_MASK, matches);
        if (found != 0) return start + __ffs(int(found)) - 1;
    }
    return -1;
}

}  // namespace

// Grid: num_trees. Block: 32 threads, or 1024 where a sampler chooses by whole rows.
// trees[num_trees]: {sampler (-1 for padding), first token, nodes, first row of logits}. tokens and parents (within the tree; the root's is
// 0) [num_tokens]. logits [_, vocab_size]; top_tokens, top_logits [_, k] and status [_] by row of logits, from logits_combine.
// results[num_trees, 3 + max_path]: status, nodes of the path, token chosen after it (-1 on an error), then the path's nodes; of padding
// nothing. A path ends after max_path nodes at the latest; on an error it ends with the node whose logits were broken.
extern "C" __global__ void __launch_bounds__(1024, 1)
    accept_trees(const int4* trees, const Sampler* samplers, const int* tokens, const int* parents, const float* logits,
                 const int* top_tokens, const float* top_logits, const uint32_t* status, int* results, int vocab_size, int k,
                 int max_path) {
    __shared__ RowScratch scratch;
    release_next_kernel();
    await_previous_kernel();
    int4 tree = trees[blockIdx.x];
    int first = tree.y, num_nodes = tree.z;
    int* result = results + (long long)blockIdx.x * (3 + max_path);
    bool writes = threadIdx.x == 0;
    if (tree.x < 0 || num_nodes <= 0) return;
    Sampler sampler = samplers[tree.x];
    // In a list of one token 0 and −0 are the same, and for a top-k they are not.
    bool has_list = sampler.top_k >= 1 && sampler.top_k <= k && k > 1;
    int outcome = ACCEPTED, node = 0, path_len = 0, token = -1;
    for (;;) {
        if (writes) result[3 + path_len] = node;
        path_len++;
        long long row = tree.w + node;
        if (status[row] != 0) {
            outcome = (status[row] & 1) != 0 ? BROKEN_LOGITS : NOTHING_FINITE;
            break;
        }
        List list(top_tokens + row * k, top_logits + row * k, k);
        const float* row_logits = logits + row * vocab_size;
        if (sampler.scale == 0.0f) {
            // A list that ends among zeros does not show every −0.
            bool is_cut = list.len == k && k > 1 && list.largest() == 0.0f && list.smallest() == 0.0f;
            token = is_cut ? first_equal(row_logits, vocab_size, 0.0f, scratch) : likeliest(list);
        } else if (has_list) {
            token = choose_of_list(list, sampler, next_number(sampler.random));
        } else {
            token = choose_of_row(row_logits, vocab_size, list.largest(), sampler, next_number(sampler.random), scratch);
        }
        node = path_len < max_path ? find_child(tokens + first, parents + first, num_nodes, node, token) : -1;
        if (node < 0) break;
    }
    if (!writes) return;
    result[0] = outcome;
    result[1] = path_len;
    result[2] = outcome == ACCEPTED ? token : -1;
}
