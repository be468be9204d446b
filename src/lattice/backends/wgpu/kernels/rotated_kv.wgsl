// What attention does with queries, keys and values before it attends: heads parted from gates, normed and turned,
// keys and values put into their pages. One workgroup a token and head, of queries (z is 0) or of keys and values (1).
// Pages are words that several tokens may share, two halves or four bytes each, so parts of a word are exchanged one
// after the other, atomically.

// workgroups: q_count, ceil(out_columns / head_dim), 2

@group(0) @binding(0) var<storage, read> inputs: array<u32>;
@group(0) @binding(1) var<storage, read> q: array<f32>;
@group(0) @binding(2) var<storage, read> k: array<f32>;
@group(0) @binding(3) var<storage, read> v: array<f32>;
@group(0) @binding(4) var<storage, read> q_norm: array<f32>;
@group(0) @binding(5) var<storage, read> k_norm: array<f32>;
@group(0) @binding(6) var<storage, read> angles: array<f32>;
@group(0) @binding(7) var<storage, read_write> k_pages: array<atomic<u32>>;
@group(0) @binding(8) var<storage, read_write> v_pages: array<atomic<u32>>;
@group(0) @binding(9) var<storage, read_write> out: array<f32>;

const row_width = k_pages_2;
const GROUP = 64u;
const OWN = (head_dim + GROUP - 1u) / GROUP;  // dimensions of a head that a thread takes
const pairs = angles_columns / 2u;

var<workgroup> parts: array<f32, GROUP>;
var<workgroup> some: array<f32, 8>;  // of eight of them each
var<workgroup> values: array<f32, head_dim>;  // of the head, normed
var<private> turns: array<vec2<f32>, OWN>;  // cosines and sines of this thread's dimensions

fn total(value: f32, thread: u32) -> f32 {
    parts[thread] = value;
    workgroupBarrier();
    if (thread < 8u) {
        var sum = 0.0;
        for (var i = 0u; i < 8u; i++) {
            sum += parts[thread + 8u * i];
        }
        some[thread] = sum;
    }
    workgroupBarrier();
    var sum = 0.0;
    for (var i = 0u; i < 8u; i++) {
        sum += some[i];
    }
    return sum;
}

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

// A dimension that this thread takes; behind the head it is the last one again.
fn dimension(o: u32, thread: u32) -> u32 {
    return min(o * GROUP + thread, head_dim - 1u);
}

// The pair of a dimension that turns.
fn pair_of(d: u32) -> u32 {
    return select(d % pairs, d / 2u, interleaved);
}

// The angles of this thread's dimensions: loaded with what they turn, so that nothing waits for them later.
fn bring_angles(token: u32, thread: u32) {
    for (var o = 0u; o < OWN; o++) {
        let at = token * angles_columns + pair_of(min(dimension(o, thread), angles_columns - 1u));
        turns[o] = vec2<f32>(angles[at], angles[at + pairs]);
    }
}

// Leave a head in workgroup memory, normed by its weights where it has a norm.
fn keep(own: array<f32, OWN>, weights: array<f32, OWN>, is_normed: bool, thread: u32) {
    var factor = 1.0;
    if (is_normed) {
        var squares = 0.0;
        for (var o = 0u; o < OWN; o++) {
            squares += select(0.0, own[o] * own[o], o * GROUP + thread < head_dim);
        }
        factor = inverseSqrt(total(squares, thread) / f32(head_dim) + eps);
    }
    for (var o = 0u; o < OWN; o++) {
        if (o * GROUP + thread < head_dim) {
            values[o * GROUP + thread] = own[o] * factor * weights[o];
        }
    }
    workgroupBarrier();
}

fn bring_query(token: u32, head: u32, thread: u32) {
    let at = token * q_columns + head * head_dim * select(1u, 2u, gated);
    var own = array<f32, OWN>();
    var weights = array<f32, OWN>();
    for (var o = 0u; o < OWN; o++) {
        let d = dimension(o, thread);
        own[o] = q[at + d];
        weights[o] = 1.0;
        if (has_q_norm) {
            weights[o] = q_norm[d];
        }
    }
    bring_angles(token, thread);
    keep(own, weights, has_q_norm, thread);
}

fn bring_key(token: u32, head: u32, thread: u32) {
    let at = token * k_columns + head * head_dim;
    var own = array<f32, OWN>();
    var weights = array<f32, OWN>();
    for (var o = 0u; o < OWN; o++) {
        let d = dimension(o, thread);
        own[o] = k[at + d];
        weights[o] = 1.0;
        if (has_k_norm) {
            weights[o] = k_norm[d];
        }
    }
    bring_angles(token, thread);
    keep(own, weights, has_k_norm, thread);
}

// A value of the head, one of this thread's dimensions, turned.
fn turned(o: u32, thread: u32) -> f32 {
    let d = dimension(o, thread);
    if (d >= angles_columns) {
        return values[d];
    }
    let is_first = select(d < pairs, d % 2u == 0u, interleaved);
    let apart = select(pairs, 1u, interleaved);
    if (is_first) {
        return values[d] * turns[o].x - values[d + apart] * turns[o].y;
    }
    return values[d] * turns[o].x + values[d - apart] * turns[o].y;
}

// What a number is in its word, and the bits of the word that it takes.
fn placed(value: f32, inverse: f32, at: u32) -> vec2<u32> {
    if (k_pages_f16) {
        let shift = 16u * (at & 1u);
        return vec2<u32>(pack2x16float(vec2<f32>(value, 0.0)) << shift, 0xffffu << shift);
    }
    if (k_pages_i8) {
        let shift = 8u * (at & 3u);
        return vec2<u32>((bitcast<u32>(i32(round(value * inverse))) & 255u) << shift, 255u << shift);
    }
    return vec2<u32>(bitcast<u32>(value), 0xffffffffu);
}

fn append(token: u32, head: u32, thread: u32) {
    let row = token * k_columns + head * head_dim;
    let position = inputs[step_positions + token];
    let page = inputs[step_page_table + sequence_of(token) * step_width + position / 64u];
    let base = (page * k_pages_1 + head) * row_width * 64u;
    let place = position % 64u;
    var own = array<f32, OWN>();
    for (var o = 0u; o < OWN; o++) {
        own[o] = v[row + dimension(o, thread)];
    }
    bring_key(token, head, thread);
    var inverse = vec2<f32>();
    if (k_pages_i8) {
        var most = vec2<f32>();
        for (var o = 0u; o < OWN; o++) {
            most = max(most, abs(vec2<f32>(turned(o, thread), own[o])));
        }
        most = vec2<f32>(largest(most.x, thread), largest(most.y, thread));
        inverse = select(vec2<f32>(), 127.0 / most, most > vec2<f32>(1e-36));
        if (thread == 0u) {
            atomicStore(&k_pages[base / 4u + head_dim * 16u + place], bitcast<u32>(most.x / 127.0));
            atomicStore(&v_pages[(base + place * row_width + head_dim) / 4u], bitcast<u32>(most.y / 127.0));
        }
    }
    let per_word = select(select(1u, 2u, k_pages_f16), 4u, k_pages_i8);
    for (var o = 0u; o < OWN; o++) {
        let d = o * GROUP + thread;
        if (d >= head_dim) {
            continue;
        }
        let key = base + d * 64u + place;
        let key_bits = placed(turned(o, thread), inverse.x, key);
        atomicAnd(&k_pages[key / per_word], ~key_bits.y);
        atomicOr(&k_pages[key / per_word], key_bits.x);
        let value = base + place * row_width + d;
        let value_bits = placed(own[o], inverse.y, value);
        atomicAnd(&v_pages[value / per_word], ~value_bits.y);
        atomicOr(&v_pages[value / per_word], value_bits.x);
    }
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    if (group.z == 0u) {
        bring_query(group.x, group.y, thread);
        for (var o = 0u; o < OWN; o++) {
            let d = o * GROUP + thread;
            if (d < head_dim) {
                out[group.x * out_columns + group.y * head_dim + d] = turned(o, thread);
            }
        }
    } else if (group.y < k_pages_1) {
        append(group.x, group.y, thread);
    }
}
