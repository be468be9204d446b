// Attention through the page table: a workgroup takes a token and a head, one page of 64 keys at a time.
// With a gate, the projection whose heads are pairs of a query and a gate, each head is multiplied by its sigmoid.
// `few`: 32 workgroups share the pages of a token and head, and `merge` puts their parts together.
// The running maximum and sum follow Milakov and Gimelshein (2018): what was summed is scaled when the maximum grows.

// workgroups: q_count, ceil(q_columns / k_pages_dim)
// workgroups few: 32, ceil(q_columns / k_pages_dim), q_count
// workgroups merge: q_count, ceil(q_columns / k_pages_dim)
// scratch: ceil(16 * 32 * q_columns * k_pages_part / k_pages_dim)

@group(0) @binding(0) var<storage, read> inputs: array<u32>;
@group(0) @binding(1) var<storage, read> q: array<f32>;
@group(0) @binding(2) var<storage, read> k_pages: array<u32>;
@group(0) @binding(3) var<storage, read> v_pages: array<u32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;
@group(0) @binding(5) var<storage, read_write> scratch: array<f32>;
@group(0) @binding(6) var<storage, read> gate: array<f32>;

const row_width = k_pages_2;
const head_dim = k_pages_dim;

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

// A number of a pool as it is stored.
fn stored_key(at: u32) -> f32 {
    if (k_pages_f16) {
        return unpack2x16float(k_pages[at / 2u])[at & 1u];
    }
    if (k_pages_i8) {
        return f32(unpack4xI8(k_pages[at / 4u])[at & 3u]);
    }
    return bitcast<f32>(k_pages[at]);
}

fn stored_value(at: u32) -> f32 {
    if (k_pages_f16) {
        return unpack2x16float(v_pages[at / 2u])[at & 1u];
    }
    if (k_pages_i8) {
        return f32(unpack4xI8(v_pages[at / 4u])[at & 3u]);
    }
    return bitcast<f32>(v_pages[at]);
}

// How far the gate of a dimension is open.
fn opened(token: u32, head: u32, d: u32) -> f32 {
    if (!has_gate) {
        return 1.0;
    }
    return 1.0 / (1.0 + exp(-gate[2u * token * q_columns + (2u * head + 1u) * head_dim + d]));
}

const heads = q_columns / head_dim;
const SPLITS = 32u;
const LOWEST = -3.4e38;

var<private> own: array<f32, OWN>;  // this thread's dimensions of what was summed

// Attend to the pages from `first_page` to before `end_page`; returns the maximum and the sum of what stands in `own`.
fn attend(token: u32, head: u32, first_page: u32, end_page: u32, thread: u32) -> vec2<f32> {
    let row = token * q_columns + head * head_dim;
    let kv_head = head / (heads / k_pages_1);
    let table = step_page_table + sequence_of(token) * step_width;
    let end = inputs[step_positions + token] + 1u;
    let first = select(0u, end - min(end, window), window > 0u);
    for (var d = thread; d < head_dim; d += GROUP) {
        query[d] = q[row + d] * scale;
    }
    workgroupBarrier();
    var maximum = LOWEST;
    var sum = 0.0;
    for (var number = max(first_page, first / 64u); number < end_page; number++) {
        let start = number * 64u;
        let page = (inputs[table + number] * k_pages_1 + kv_head) * row_width * 64u;
        let key = start + thread;
        let seen = key >= first && key < end;
        var score = LOWEST;
        if (seen) {
            // Four loads at a time are under way together.
            var four = vec4<f32>();
            for (var d = 0u; d < head_dim; d += 4u) {
                let at = page + d * 64u + thread;
                let keys = vec4<f32>(
                    stored_key(at), stored_key(at + 64u), stored_key(at + 128u), stored_key(at + 192u));
                four += keys * vec4<f32>(query[d], query[d + 1u], query[d + 2u], query[d + 3u]);
            }
            score = four.x + four.y + four.z + four.w;
            if (k_pages_i8) {
                score *= bitcast<f32>(k_pages[page / 4u + head_dim * 16u + thread]);
            }
        }
        let grown = max(maximum, largest(score, thread));
        let probability = select(0.0, exp(score - grown), seen);
        let shrink = exp(maximum - grown);
        maximum = grown;
        var weight = probability;
        if (k_pages_i8 && seen) {
            weight *= bitcast<f32>(v_pages[(page + thread * row_width + head_dim) / 4u]);
        }
        chunk[thread] = weight;
        sum = sum * shrink + total(probability, thread);
        // What is not seen weighs nothing, but what lies there may be no number.
        let begin = select(0u, first - start, first > start);
        let keys = min(GROUP, end - start);
        for (var o = 0u; o < OWN; o++) {
            let d = o * GROUP + thread;
            if (d < head_dim) {
                var value = own[o] * shrink;
                var i = begin;
                for (; i + 4u <= keys; i += 4u) {
                    let at = page + i * row_width + d;
                    let values = vec4<f32>(
                        stored_value(at), stored_value(at + row_width),
                        stored_value(at + 2u * row_width), stored_value(at + 3u * row_width));
                    value += dot(values, vec4<f32>(chunk[i], chunk[i + 1u], chunk[i + 2u], chunk[i + 3u]));
                }
                for (; i < keys; i++) {
                    value += chunk[i] * stored_value(page + i * row_width + d);
                }
                own[o] = value;
            }
        }
    }
    return vec2<f32>(maximum, sum);
}

fn pages_of(token: u32) -> u32 {
    return inputs[step_positions + token] / 64u + 1u;
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let found = attend(group.x, group.y, 0u, pages_of(group.x), thread);
    for (var o = 0u; o < OWN; o++) {
        let d = o * GROUP + thread;
        if (d < head_dim) {
            out[group.x * q_columns + group.y * head_dim + d] = own[o] / found.y * opened(group.x, group.y, d);
        }
    }
}

const WIDTH = head_dim + 2u;  // of a part: what was summed, the maximum, the sum

@compute @workgroup_size(64)
fn few(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let each = (pages_of(group.z) + SPLITS - 1u) / SPLITS;
    let end = min((group.x + 1u) * each, pages_of(group.z));
    let found = attend(group.z, group.y, group.x * each, end, thread);
    let part = ((group.z * heads + group.y) * SPLITS + group.x) * WIDTH;
    for (var o = 0u; o < OWN; o++) {
        let d = o * GROUP + thread;
        if (d < head_dim) {
            scratch[part + d] = own[o];
        }
    }
    if (thread == 0u) {
        scratch[part + head_dim] = found.x;
        scratch[part + head_dim + 1u] = found.y;
    }
}

@compute @workgroup_size(64)
fn merge(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let parts_at = (group.x * heads + group.y) * SPLITS * WIDTH;
    var maximum = LOWEST;
    var sum = 0.0;
    if (thread < SPLITS) {
        maximum = scratch[parts_at + thread * WIDTH + head_dim];
        sum = scratch[parts_at + thread * WIDTH + head_dim + 1u];
    }
    let factor = exp(maximum - largest(maximum, thread));
    chunk[thread] = factor;
    let whole = total(sum * factor, thread);
    for (var d = thread; d < head_dim; d += GROUP) {
        var value = 0.0;
        for (var s = 0u; s < SPLITS; s++) {
            value += chunk[s] * scratch[parts_at + s * WIDTH + d];
        }
        out[group.x * q_columns + group.y * head_dim + d] = value / whole * opened(group.x, group.y, d);
    }
}
