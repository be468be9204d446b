// Attention within each sequence of the step: a workgroup for 64 tokens of a head, whatever sequences they are of.
// A thread has a token's query and result in registers, or a part of them where heads are wide; keys and values come
// through workgroup memory, some at a time, from the begin of each sequence on: what is beside it changes no bit.
// The running maximum and sum follow Milakov and Gimelshein (2018): what was summed is scaled when the maximum grows.

// workgroups: ceil(q_count / 64), ceil(q_columns / head_dim)

@group(0) @binding(0) var<storage, read> inputs: array<u32>;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;

const TOKENS = 64u;
const PARTS = min(4u, (head_dim + 31u) / 32u);  // threads of a token
const OWN = (head_dim + 4u * PARTS - 1u) / (4u * PARTS);  // vectors of four that each of them has
const WIDTH = PARTS * OWN;
const THREADS = TOKENS * PARTS;
const KEYS = max(8u, 512u / WIDTH / 8u * 8u);  // that lie in workgroup memory together
const LEAST = -3.4e38;

var<workgroup> keys: array<vec4<f32>, KEYS * WIDTH>;
var<workgroup> values: array<vec4<f32>, KEYS * WIDTH>;
var<workgroup> shares: array<vec4<f32>, 2u * THREADS>;  // of eight scores by part and token

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

// The first key that a token of a sequence sees: a window limits only what is before.
fn first_of(begin: u32, token: u32) -> u32 {
    return select(begin, max(begin, token + 1u - min(token + 1u, window)), window > 0u);
}

fn q_four(row: u32, d: u32) -> vec4<f32> {
    if (head_dim % 4u == 0u) {
        return q[(row + d) / 4u];
    }
    var four = vec4<f32>();
    for (var i = 0u; i < 4u; i++) {
        if (d + i < head_dim) {
            four[i] = q[(row + d + i) / 4u][(row + d + i) % 4u];
        }
    }
    return four;
}

fn k_four(row: u32, d: u32) -> vec4<f32> {
    if (head_dim % 4u == 0u) {
        return k[(row + d) / 4u];
    }
    var four = vec4<f32>();
    for (var i = 0u; i < 4u; i++) {
        if (d + i < head_dim) {
            four[i] = k[(row + d + i) / 4u][(row + d + i) % 4u];
        }
    }
    return four;
}

fn v_four(row: u32, d: u32) -> vec4<f32> {
    if (head_dim % 4u == 0u) {
        return v[(row + d) / 4u];
    }
    var four = vec4<f32>();
    for (var i = 0u; i < 4u; i++) {
        if (d + i < head_dim) {
            four[i] = v[(row + d + i) / 4u][(row + d + i) % 4u];
        }
    }
    return four;
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let tokens = inputs[q_count];
    let top = group.x * TOKENS;
    let bottom = min(top + TOKENS, tokens) - 1u;
    let token = min(top + thread % TOKENS, bottom);
    let part = thread / TOKENS;
    let row = token * q_columns + group.y * head_dim;
    let kv_column = group.y / (q_columns / k_columns) * head_dim;
    let own_sequence = sequence_of(token);
    let own_first = first_of(inputs[step_offsets + own_sequence], token);
    let own_end = select(inputs[step_offsets + own_sequence + 1u], token + 1u, causal);
    var query = array<vec4<f32>, OWN>();
    var result = array<vec4<f32>, OWN>();
    for (var o = 0u; o < OWN; o++) {
        let d = (part * OWN + o) * 4u;
        if (d < head_dim) {
            query[o] = q_four(row, d) * scale;
        }
    }
    var maximum = LEAST;
    var sum = 0.0;
    let last = sequence_of(bottom);
    for (var sequence = sequence_of(top); sequence <= last; sequence++) {
        let begin = inputs[step_offsets + sequence];
        let whole = inputs[step_offsets + sequence + 1u];
        let end = select(whole, min(whole, bottom + 1u), causal);
        let seen = first_of(begin, max(top, begin));  // of the tile's first token in it
        for (var start = begin + (seen - begin) / KEYS * KEYS; start < end; start += KEYS) {
            workgroupBarrier();
            for (var i = thread; i < KEYS * WIDTH; i += THREADS) {
                let key = start + i / WIDTH;
                let d = i % WIDTH * 4u;
                var key_four = vec4<f32>();
                var value_four = vec4<f32>();
                if (key < end && d < head_dim) {
                    key_four = k_four(key * k_columns + kv_column, d);
                    value_four = v_four(key * k_columns + kv_column, d);
                }
                keys[i] = key_four;
                values[i] = value_four;
            }
            workgroupBarrier();
            let some = min(KEYS, end - start);
            let limit = select(own_end, 0u, sequence != own_sequence);
            if (PARTS == 1u && sequence != own_sequence) {
                continue;
            }
            for (var i = 0u; i < some; i += 8u) {
                var scores = array<vec4<f32>, 8>();
                for (var o = 0u; o < OWN; o++) {
                    let at = i * WIDTH + part * OWN + o;
                    for (var n = 0u; n < 8u; n++) {
                        scores[n] = fma(query[o], keys[at + n * WIDTH], scores[n]);
                    }
                }
                let ones = vec4<f32>(1.0);
                var near = vec4<f32>(dot(scores[0], ones), dot(scores[1], ones), dot(scores[2], ones), dot(scores[3], ones));
                var far = vec4<f32>(dot(scores[4], ones), dot(scores[5], ones), dot(scores[6], ones), dot(scores[7], ones));
                if (PARTS > 1u) {
                    workgroupBarrier();
                    shares[2u * thread] = near;
                    shares[2u * thread + 1u] = far;
                    workgroupBarrier();
                    near = vec4<f32>();
                    far = vec4<f32>();
                    for (var other = thread % TOKENS; other < THREADS; other += TOKENS) {
                        near += shares[2u * other];
                        far += shares[2u * other + 1u];
                    }
                }
                let key = vec4<u32>(0u, 1u, 2u, 3u) + (start + i);
                let near_seen = (key >= vec4<u32>(own_first)) & (key < vec4<u32>(limit));
                let far_seen = (key + 4u >= vec4<u32>(own_first)) & (key + 4u < vec4<u32>(limit));
                near = select(vec4<f32>(LEAST), near, near_seen);
                far = select(vec4<f32>(LEAST), far, far_seen);
                let pairs = max(near, far);
                let grown = max(maximum, max(max(pairs.x, pairs.y), max(pairs.z, pairs.w)));
                let shrink = exp(maximum - grown);
                maximum = grown;
                near = select(vec4<f32>(), exp(near - grown), near_seen);
                far = select(vec4<f32>(), exp(far - grown), far_seen);
                sum = sum * shrink + dot(near + far, ones);
                for (var o = 0u; o < OWN; o++) {
                    let at = i * WIDTH + part * OWN + o;
                    var held = result[o] * shrink;
                    held = fma(vec4<f32>(near.x), values[at], held);
                    held = fma(vec4<f32>(near.y), values[at + WIDTH], held);
                    held = fma(vec4<f32>(near.z), values[at + 2u * WIDTH], held);
                    held = fma(vec4<f32>(near.w), values[at + 3u * WIDTH], held);
                    held = fma(vec4<f32>(far.x), values[at + 4u * WIDTH], held);
                    held = fma(vec4<f32>(far.y), values[at + 5u * WIDTH], held);
                    held = fma(vec4<f32>(far.z), values[at + 6u * WIDTH], held);
                    result[o] = fma(vec4<f32>(far.w), values[at + 7u * WIDTH], held);
                }
            }
        }
    }
    if (top + thread % TOKENS < tokens) {
        for (var o = 0u; o < OWN; o++) {
            for (var i = 0u; i < 4u; i++) {
                let d = (part * OWN + o) * 4u + i;
                if (d < head_dim) {
                    out[row + d] = result[o][i] / sum;
                }
            }
        }
    }
}
