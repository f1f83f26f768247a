// What is accepted of draft trees, so that the output is the target's own: choose, then match.
//
// At each node the next token is chosen from the target's logits there, exactly as plain decoding would; if a child of the node holds it,
// the walk goes on there, else it ends, and the chosen token is the next root. With a drafter whose proposals are no samples this is the
// sequential rejection of Leviathan et al. (arXiv 2211.17192) and SpecInfer (arXiv 2305.09781) with q = 1, and token for token the plain
// output of the same seed. A decode step is a tree of one node.
//
// Choosing is the host sampler's, bit for bit: the likeliest token, or one drawn from a shortlist of at most 64 (top-k, then top-p and min-p)
// with F64 arithmetic from basic operations, each rounded by itself, and one number of the lane's SplitMix64 stream a node. A sampler
// without top-k, or with a larger one, sums up the whole vocabulary in order: its rows are for the host.
//
// One warp a tree. Bound by latency: a few dependent reads a node.

#include "common/types.cuh"
#include "common/warp.cuh"

// Outside the unnamed namespace, where NVRTC puts the number of its process into the name: no two builds would give the same bytes.
constexpr int MAX_TOP_K = 64;

namespace {

// How a lane chooses; 24 bytes, as launch/accept.rs lays them out.
struct Sampler {
    // 0 is greedy.
    float temperature;
    int top_k;
    float top_p;
    float min_p;
    // Of the random stream; advances by one number for each node.
    unsigned long long state;
};

// First word of a result.
enum Status { ACCEPTED = 0, BROKEN_LOGITS = 1, NOTHING_FINITE = 2, NO_SHORTLIST = 3 };

#if defined(TAKT_EMULATED)
__device__ __forceinline__ double add(double a, double b) { return a + b; }
__device__ __forceinline__ double multiply(double a, double b) { return a * b; }
__device__ __forceinline__ double divide(double a, double b) { return a / b; }
#else
// Not contracted to fused operations.
__device__ __forceinline__ double add(double a, double b) { return __dadd_rn(a, b); }
__device__ __forceinline__ double multiply(double a, double b) { return __dmul_rn(a, b); }
__device__ __forceinline__ double divide(double a, double b) { return __ddiv_rn(a, b); }
#endif

__device__ __forceinline__ double from_bits(unsigned long long bits) {
#if defined(TAKT_EMULATED)
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
#else
    return __longlong_as_double((long long)bits);
#endif
}

// e^x for x ≤ 0, within 2 units in the last place; 0 below −708. As the host computes it.
__device__ double exp_nonpositive(double x) {
    if (x < -708.0) return 0.0;
    // x = k·ln 2 + r with |r| ≤ ln 2 / 2; k times the upper part of ln 2 is exact.
    double k = floor(add(multiply(x, from_bits(0x3ff71547652b82feull)), 0.5));
    double r = add(add(x, -multiply(k, from_bits(0x3fe62e42fee00000ull))), -multiply(k, from_bits(0x3dea39ef35793c76ull)));
    double e_to_r = 1.0;
#pragma unroll 1
    for (int n = 13; n >= 1; n--) e_to_r = add(1.0, divide(multiply(e_to_r, r), double(n)));
    return multiply(e_to_r, from_bits((unsigned long long)((long long)k + 1023) << 52));
}

// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): uniform in [0, 1), on a grid of 2^−53.
__device__ __forceinline__ double next_unit(unsigned long long& state) {
    state += 0x9e3779b97f4a7c15ull;
    unsigned long long z = state;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return multiply(double((z ^ z >> 31) >> 11), 0x1p-53);
}

// A row's likeliest tokens, largest logit first.
struct Shortlist {
    const int* tokens;
    const float* logits;
    int len;
};

// The lowest id of those that equal the largest: −0 equals 0 here, though it comes after it in the list.
__device__ __forceinline__ int likeliest(const Shortlist& list) {
    int token = list.tokens[0];
    for (int idx = 1; idx < list.len && list.logits[idx] == list.logits[0]; idx++) token = min(token, list.tokens[idx]);
    return token;
}

// How many of the first `len` weights reach `top_p` of their sum.
__device__ __forceinline__ int reaching(const double* weights, int len, double top_p) {
    double total = 0.0, reached = 0.0;
    for (int idx = 0; idx < len; idx++) total = add(total, weights[idx]);
    for (int idx = 0; idx < len; idx++) {
        reached = add(reached, weights[idx]);
        if (reached >= multiply(top_p, total)) return idx + 1;
    }
    return len;
}

// Index at `unit` of the weights' sum, of those that are at least `min_p`; the first has weight 1.
__device__ __forceinline__ int pick(const double* weights, int len, double min_p, double unit) {
    double total = 0.0;
    for (int idx = 0; idx < len; idx++) {
        if (weights[idx] >= min_p) total = add(total, weights[idx]);
    }
    double rest = multiply(unit, total);
    int last = 0;
    for (int idx = 0; idx < len; idx++) {
        if (!(weights[idx] >= min_p)) continue;
        rest = add(rest, -weights[idx]);
        if (rest < 0.0) return idx;
        // Rounding may leave a crumb beyond the last token that has any weight.
        if (weights[idx] > 0.0) last = idx;
    }
    return last;
}

// The next token after the row, the same in every lane. `weights` is shared memory of the warp.
__device__ __forceinline__ int choose(const Shortlist& list, Sampler& sampler, double* weights) {
    if (sampler.temperature == 0.0f) return likeliest(list);
    int len = min(list.len, sampler.top_k);
    __syncwarp();
    for (int idx = lane_idx(); idx < len; idx += WARP_SIZE) {
        double below = add(double(list.logits[idx]), -double(list.logits[0]));
        weights[idx] = exp_nonpositive(divide(below, double(sampler.temperature)));
    }
    __syncwarp();
    if (sampler.top_p < 1.0f) len = reaching(weights, len, double(sampler.top_p));
    return list.tokens[pick(weights, len, double(sampler.min_p), next_unit(sampler.state))];
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

// Grid: num_trees. Block: 32 threads.
// trees[num_trees]: {lane (-1 for padding), first token, nodes, first row of logits}. tokens, parents (within the tree; the root's is 0) and
// rows (of the cache) [num_tokens]. top_tokens, top_logits [_, k] and status [_] by row of logits, from logits_combine. samplers and
// committed_lens by lane: both advance. results[num_trees, 4 + max_path]: status, nodes of the path, token chosen after it (-1 on an
// error), new committed length, then the path's nodes. moves: for kv_compact. A path ends after max_path nodes at the latest. On an error
// nothing is committed, and the path ends with the node whose logits were broken.
extern "C" __global__ void __launch_bounds__(32, 16)
    accept_trees(const int4* trees, const int* tokens, const int* parents, const int* rows, const int* top_tokens,
                 const float* top_logits, const uint32_t* status, Sampler* samplers, int* committed_lens, int* results, int* moves,
                 int k, int max_path) {
    __shared__ double weights[MAX_TOP_K];
    release_next_kernel();
    await_previous_kernel();
    int4 tree = trees[blockIdx.x];
    int lane = tree.x, first = tree.y, num_nodes = tree.z;
    int* result = results + (long long)blockIdx.x * (4 + max_path);
    int* move = moves + (long long)blockIdx.x * (3 + max_path);
    bool writes = lane_idx() == 0;
    if (lane < 0 || num_nodes <= 0) {
        if (writes) move[0] = -1;
        return;
    }
    Sampler sampler = samplers[lane];
    bool has_shortlist = sampler.temperature == 0.0f || (sampler.top_k >= 1 && sampler.top_k <= min(k, MAX_TOP_K));
    int outcome = has_shortlist ? ACCEPTED : NO_SHORTLIST;
    int node = 0, path_len = 0, token = -1;
    while (outcome == ACCEPTED) {
        if (writes) {
            result[4 + path_len] = node;
            move[3 + path_len] = rows[first + node];
        }
        path_len++;
        long long row = tree.w + node;
        if (status[row] != 0) {
            outcome = (status[row] & 1) != 0 ? BROKEN_LOGITS : NOTHING_FINITE;
            break;
        }
        Shortlist list = {top_tokens + row * k, top_logits + row * k, 0};
        while (list.len < min(k, MAX_TOP_K) && list.tokens[list.len] >= 0) list.len++;
        token = choose(list, sampler, weights);
        node = path_len < max_path ? find_child(tokens + first, parents + first, num_nodes, node, token) : -1;
        if (node < 0) break;
    }
    if (!writes) return;
    int committed_len = committed_lens[lane], num_kept = outcome == ACCEPTED ? path_len : 0;
    result[0] = outcome;
    result[1] = path_len;
    result[2] = outcome == ACCEPTED ? token : -1;
    result[3] = committed_len + num_kept;
    move[0] = lane;
    move[1] = num_kept;
    move[2] = committed_len;
    samplers[lane].state = sampler.state;
    committed_lens[lane] = committed_len + num_kept;
}
