// Attention within each sequence of the step: one workgroup a token and head, 64 keys at a time.
// The running maximum and sum follow Milakov and Gimelshein (2018): what was summed is scaled when the maximum grows.

// workgroups: q_count, ceil(q_columns / head_dim)

@group(0) @binding(0) var<storage, read> inputs: array<u32>;
@group(0) @binding(1) var<storage, read> q: array<f32>;
@group(0) @binding(2) var<storage, read> k: array<f32>;
@group(0) @binding(3) var<storage, read> v: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;

const GROUP = 64u;
const OWN = (head_dim + GROUP - 1u) / GROUP;  // dimensions of the result that a thread keeps

var<workgroup> query: array<f32, head_dim>;
var<workgroup> chunk: array<f32, 64>;  // probabilities of 64 keys
var<workgroup> parts: array<f32, 64>;

fn largest(value: f32, thread: u32) -> f32 {
    workgroupBarrier();
    parts[thread] = value;
    for (var half = 32u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (thread < half) {
            parts[thread] = max(parts[thread], parts[thread + half]);
        }
    }
    workgroupBarrier();
    return parts[0];
}

fn total(value: f32, thread: u32) -> f32 {
    workgroupBarrier();
    parts[thread] = value;
    for (var half = 32u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (thread < half) {
            parts[thread] += parts[thread + half];
        }
    }
    workgroupBarrier();
    return parts[0];
}

// The sequence that a token of the step belongs to.
fn sequence_of(token: u32) -> u32 {
    var low = 0u;
    var high = inputs[step_S];
    while (high - low > 1u) {
        let middle = (low + high) / 2u;
        if (inputs[step_offsets + middle] <= token) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let token = group.x;
    let row = token * q_columns + group.y * head_dim;
    let kv_column = group.y / (q_columns / k_columns) * head_dim;
    let sequence = sequence_of(token);
    let begin = inputs[step_offsets + sequence];
    let end = select(inputs[step_offsets + sequence + 1u], token + 1u, causal);
    // A window limits only what is before: with no causal limit tokens behind are all seen.
    let first = select(begin, max(begin, token + 1u - min(token + 1u, window)), window > 0u);
    for (var d = thread; d < head_dim; d += GROUP) {
        query[d] = q[row + d] * scale;
    }
    workgroupBarrier();
    var maximum = -3.4e38;
    var sum = 0.0;
    var own: array<f32, OWN>;
    for (var start = first; start < end; start += GROUP) {
        let key = start + thread;
        var score = -3.4e38;
        if (key < end) {
            score = 0.0;
            for (var d = 0u; d < head_dim; d++) {
                score += query[d] * k[key * k_columns + kv_column + d];
            }
        }
        let grown = max(maximum, largest(score, thread));
        let probability = select(0.0, exp(score - grown), key < end);
        let shrink = exp(maximum - grown);
        maximum = grown;
        chunk[thread] = probability;
        sum = sum * shrink + total(probability, thread);
        let keys = min(GROUP, end - start);
        for (var o = 0u; o < OWN; o++) {
            let d = o * GROUP + thread;
            if (d < head_dim) {
                var value = own[o] * shrink;
                for (var i = 0u; i < keys; i++) {
                    value += chunk[i] * v[(start + i) * k_columns + kv_column + d];
                }
                own[o] = value;
            }
        }
    }
    for (var o = 0u; o < OWN; o++) {
        let d = o * GROUP + thread;
        if (d < head_dim) {
            out[row + d] = own[o] / sum;
        }
    }
}
