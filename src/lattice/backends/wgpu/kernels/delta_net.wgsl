// A gated delta net between its products: a causal convolution, the gated delta rule, and a gated norm of every head.
// `few`: a workgroup takes a key head of one sequence and, one after the other, the value heads that read with it. All
// channels and states that it reads and saves are its own, so it may save to the slot that it reads; tokens follow one
// another. For many tokens the same in three stages, each as parallel as it can be: `main` is the kernel slot_conv1d
// with what it gives in `scratch`, `then` the delta rule, and `then2` norms in place.

// workgroups: ceil(x_columns / 16), step_S
// workgroups then: ceil(out_columns / value_heads / 16), value_heads, step_S
// workgroups then2: value_heads, x_count
// workgroups few: key_heads, step_S, ceil(x_count / 16)
// scratch: x_count * x_columns

@group(0) @binding(0) var<storage, read> inputs: array<u32>;
@group(0) @binding(1) var<storage, read_write> conv_state: array<f32>;
@group(0) @binding(2) var<storage, read_write> state: array<f32>;
@group(0) @binding(3) var<storage, read> x: array<f32>;
@group(0) @binding(4) var<storage, read> z: array<f32>;
@group(0) @binding(5) var<storage, read> a: array<f32>;
@group(0) @binding(6) var<storage, read> b: array<f32>;
@group(0) @binding(7) var<storage, read> conv_weight: array<f32>;
@group(0) @binding(8) var<storage, read> a_log: array<f32>;
@group(0) @binding(9) var<storage, read> dt_bias: array<f32>;
@group(0) @binding(10) var<storage, read> norm_weight: array<f32>;
@group(0) @binding(11) var<storage, read_write> out: array<f32>;
@group(0) @binding(12) var<storage, read_write> scratch: array<f32>;

const width = conv_weight_1;
const dk = select(key_dim, x_columns / (2u * key_heads + value_heads), key_dim == 0u);
const dv = (x_columns - 2u * key_heads * dk) / value_heads;
const LANES = 16u;  // threads that share a sum

fn is_finite(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7f800000u) != 0x7f800000u;
}

fn is_number(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7fffffffu) <= 0x7f800000u;
}

fn silu(x: f32) -> f32 {
    return x / (1.0 + exp(-x));
}

// What scales a vector to length 1; a vector of no finite length counts as zero.
fn to_unit(square: f32) -> f32 {
    return select(0.0, inverseSqrt(square + 1e-6), is_finite(square));
}

// Decay and beta of a token; neither is ever not a number.
fn gates_of(token: u32, head: u32) -> vec2<f32> {
    let at = token * value_heads + head;
    let gate = a[at] + dt_bias[head];
    let rate = -exp(a_log[head]) * (max(gate, 0.0) + log(1.0 + exp(-abs(gate))));
    let decay = exp(rate);
    let beta = 1.0 / (1.0 + exp(-b[at]));
    return vec2<f32>(
        select(1.0, decay, is_number(decay) && is_number(gate)),
        select(0.0, beta, is_number(b[at])));
}

// ---- few tokens ----

const GROUP = 256u;
const READERS = value_heads / key_heads;  // value heads that read with one key head
const PARTS = clamp(GROUP / dv, 1u, 4u);  // threads that share a column of a state
const QUADS = (dk + 4u * PARTS - 1u) / (4u * PARTS);  // vectors of four rows that each of them keeps
const KEYS = PARTS * QUADS;  // where keys begin, in vectors: behind queries
const ITEMS = 8u * KEYS + dv;  // channels of a key head, padded, and of one value head
const OWN = (ITEMS + GROUP - 1u) / GROUP;
const CHUNK = 4u;  // tokens at a time

var<workgroup> vectors: array<array<vec4<f32>, 2u * KEYS>, CHUNK>;  // queries, then keys
var<workgroup> values: array<array<f32, dv>, CHUNK>;
var<workgroup> chunk_gates: array<vec2<f32>, CHUNK>;
var<workgroup> held: array<vec2<f32>, GROUP>;  // parts of what a column holds for a key and for a query
var<workgroup> pairs: array<vec3<f32>, PARTS>;  // parts of key by key, query by query, and query by key
var<workgroup> told: array<f32, GROUP>;
var<workgroup> norms: array<f32, LANES>;
var<private> line: array<array<f32, width - 1u + CHUNK>, OWN>;  // inputs of this thread's channels, the last ones first
var<private> own: array<vec4<f32>, QUADS>;  // rows of this thread's column

// The channel of an item, or that there is none.
fn channel_of(item: u32, key_head: u32, head: u32) -> u32 {
    let row = item % (4u * KEYS);
    let row_of_keys = select(x_columns, item / (4u * KEYS) * key_heads * dk + key_head * dk + row, row < dk);
    let column = select(x_columns, 2u * key_heads * dk + head * dv + item - 8u * KEYS, item < ITEMS);
    return select(column, row_of_keys, item < 8u * KEYS);
}

fn put_item(place: u32, item: u32, value: f32) {
    if (item < 8u * KEYS) {
        vectors[place][item / 4u][item % 4u] = value;
    } else if (item < ITEMS) {
        values[place][item - 8u * KEYS] = value;
    }
}

// The inputs before the sequence's first token of the step.
fn open_lines(from_slot: bool, slot: u32, key_head: u32, head: u32, thread: u32) {
    for (var o = 0u; o < OWN; o++) {
        let channel = min(channel_of(o * GROUP + thread, key_head, head), x_columns - 1u);
        for (var j = 0u; j + 1u < width; j++) {
            line[o][j] = select(0.0, conv_state[(slot * x_columns + channel) * (width - 1u) + j], from_slot);
        }
    }
}

// Queries, keys and values of some tokens out of the convolution. The last reader saves what all have in common, since
// every one of them begins with what the slot held.
fn convolve(first: u32, end: u32, key_head: u32, head: u32, is_last: bool, thread: u32) {
    var taps = array<array<f32, width>, OWN>();
    for (var o = 0u; o < OWN; o++) {
        let channel = min(channel_of(o * GROUP + thread, key_head, head), x_columns - 1u);
        for (var place = 0u; place < CHUNK; place++) {
            line[o][width - 1u + place] = x[min(first + place, end - 1u) * x_columns + channel];
        }
        for (var j = 0u; j < width; j++) {
            taps[o][j] = conv_weight[channel * width + j];
        }
    }
    for (var o = 0u; o < OWN; o++) {
        let item = o * GROUP + thread;
        let is_channel = channel_of(item, key_head, head) < x_columns;
        for (var place = 0u; place < CHUNK; place++) {
            var sum = 0.0;
            for (var j = 0u; j < width; j++) {
                sum += line[o][place + j] * taps[o][j];
            }
            put_item(place, item, select(0.0, silu(sum), is_channel));
        }
    }
    for (var place = 0u; place < CHUNK; place++) {
        let kept = bitcast<i32>(inputs[step_saves + min(first + place, end - 1u)]);
        for (var o = 0u; first + place < end && kept >= 0 && o < OWN; o++) {
            let item = o * GROUP + thread;
            let channel = channel_of(item, key_head, head);
            for (var j = 0u; channel < x_columns && (is_last || item >= 8u * KEYS) && j + 1u < width; j++) {
                conv_state[(u32(kept) * x_columns + channel) * (width - 1u) + j] = line[o][place + 1u + j];
            }
        }
    }
    for (var o = 0u; o < OWN; o++) {
        for (var j = 0u; j + 1u < width; j++) {
            line[o][j] = line[o][CHUNK + j];
        }
    }
}

// What this thread's rows hold for a key and a query that are not of length 1 yet, and the products that make them so.
fn look_up(place: u32, thread: u32, c: u32, part: u32) {
    var by_key = vec4<f32>();
    var by_query = vec4<f32>();
    var products = vec3<f32>();
    for (var i = 0u; i < QUADS; i++) {
        let query = vectors[place][part * QUADS + i];
        let key = vectors[place][KEYS + part * QUADS + i];
        by_key += own[i] * key;
        by_query += own[i] * query;
        products += vec3<f32>(dot(key, key), dot(query, query), dot(query, key));
    }
    if (thread < PARTS * dv) {
        held[thread] = vec2<f32>(dot(by_key, vec4<f32>(1.0)), dot(by_query, vec4<f32>(1.0)));
        if (c == 0u) {
            pairs[part] = products;
        }
    }
    workgroupBarrier();
}

// Change a column of a state by a token, and return what it then tells a query: what it held, decayed, and the change
// as far as query and key agree. That takes one round of sums, not one before the change and one behind.
fn change_column(place: u32, c: u32, part: u32) -> f32 {
    let gate = chunk_gates[place];
    var found = vec2<f32>();
    var products = vec3<f32>();
    for (var other = 0u; other < PARTS; other++) {
        found += held[other * dv + c];
        products += pairs[other];
    }
    let key_scale = to_unit(products.x);
    let query_scale = to_unit(products.y) / sqrt(f32(dk));
    let remembered = select(0.0, found.x * key_scale, key_scale > 0.0) * gate.x;
    let change = gate.y * (values[place][c] - remembered);
    let scaled = select(0.0, change, is_finite(change)) * key_scale;
    for (var i = 0u; i < QUADS; i++) {
        let key = select(vec4<f32>(), vectors[place][KEYS + part * QUADS + i], key_scale > 0.0);
        own[i] = own[i] * gate.x + key * scaled;
    }
    let agreed = select(0.0, products.z * scaled, key_scale > 0.0);
    return select(0.0, (found.y * gate.x + agreed) * query_scale, query_scale > 0.0);
}

// The root mean square of what a head told, inverted.
fn inverse_norm(answer: f32, thread: u32) -> f32 {
    if (thread < dv) {
        told[thread] = answer * answer;
    }
    workgroupBarrier();
    if (thread < LANES) {
        var squares = 0.0;
        for (var d = thread; d < dv; d += LANES) {
            squares += told[d];
        }
        norms[thread] = squares;
    }
    workgroupBarrier();
    var sum = 0.0;
    for (var lane = 0u; lane < LANES; lane++) {
        sum += norms[lane];
    }
    return inverseSqrt(sum / f32(dv) + eps);
}

@compute @workgroup_size(256)
fn few(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let key_head = group.x;
    let slot = inputs[step_slots + group.y];
    let begin = inputs[step_offsets + group.y];
    let end = inputs[step_offsets + group.y + 1u];
    if (begin >= end) {
        return;
    }
    let from_slot = inputs[step_positions + begin] > 0u;
    let c = thread % dv;
    let part = min(thread / dv, PARTS - 1u);
    let first_row = part * QUADS * 4u;
    let weight = norm_weight[c];
    for (var reader = 0u; reader < READERS; reader++) {
        let head = select(key_head * READERS + reader, reader * key_heads + key_head, tiled);
        // All loads of the states are under way before anything waits for one.
        let at = (slot * value_heads + head) * dk * dv + c;
        for (var i = 0u; i < QUADS; i++) {
            for (var j = 0u; j < 4u; j++) {
                let row = first_row + 4u * i + j;
                own[i][j] = select(0.0, state[at + min(row, dk - 1u) * dv], from_slot && row < dk);
            }
        }
        open_lines(from_slot, slot, key_head, head, thread);
        for (var first = begin; first < end; first += CHUNK) {
            if (thread < CHUNK) {
                chunk_gates[thread] = gates_of(min(first + thread, end - 1u), head);
            }
            convolve(first, end, key_head, head, reader + 1u == READERS, thread);
            workgroupBarrier();
            for (var place = 0u; place < min(CHUNK, end - first); place++) {
                let token = first + place;
                let open = z[token * out_columns + head * dv + c];
                let kept = bitcast<i32>(inputs[step_saves + token]);
                look_up(place, thread, c, part);
                let answer = change_column(place, c, part);
                if (kept >= 0 && thread < PARTS * dv) {
                    let saved = (u32(kept) * value_heads + head) * dk * dv + c;
                    for (var i = 0u; i < QUADS; i++) {
                        for (var j = 0u; j < 4u; j++) {
                            if (first_row + 4u * i + j < dk) {
                                state[saved + (first_row + 4u * i + j) * dv] = own[i][j];
                            }
                        }
                    }
                }
                let factor = inverse_norm(answer, thread);
                if (thread < dv) {
                    out[token * out_columns + head * dv + c] = answer * factor * weight * silu(open);
                }
            }
        }
    }
}

// ---- many tokens: the convolution ----

// An input of the sequence; those before its first token are the slot's.
fn input_at(begin: u32, back: i32, channel: u32, past: ptr<function, array<f32, width>>) -> f32 {
    if (back < 0) {
        return (*past)[u32(back + i32(width) - 1)];
    }
    return x[(begin + u32(back)) * x_columns + channel];
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let channel = group.x * 16u + thread % 16u;
    let begin = inputs[step_offsets + group.y];
    let end = inputs[step_offsets + group.y + 1u];
    var past: array<f32, width>;
    if (channel < x_columns && begin < end && inputs[step_positions + begin] > 0u) {
        let slot = (inputs[step_slots + group.y] * x_columns + channel) * (width - 1u);
        for (var j = 0u; j + 1u < width; j++) {
            past[j] = conv_state[slot + j];
        }
    }
    storageBarrier();
    for (var t = begin + thread / 16u; t < end && channel < x_columns; t += 16u) {
        let first = i32(t - begin) - i32(width) + 1;
        var sum = 0.0;
        for (var j = 0u; j < width; j++) {
            sum += input_at(begin, first + i32(j), channel, &past) * conv_weight[channel * width + j];
        }
        scratch[t * x_columns + channel] = silu(sum);
        var kept = bitcast<i32>(inputs[step_saves + t]);
        for (var later = t + 1u; kept >= 0 && later < end; later++) {  // of two that save to a slot the later counts
            kept = select(kept, -1, bitcast<i32>(inputs[step_saves + later]) == kept);
        }
        let slot = (u32(max(kept, 0)) * x_columns + channel) * (width - 1u);
        for (var j = 0u; kept >= 0 && j + 1u < width; j++) {
            conv_state[slot + j] = input_at(begin, first + i32(j) + 1, channel, &past);
        }
    }
}

// ---- many tokens: the delta rule, 16 columns a workgroup, a thread an eighth of the rows of one ----

const EIGHTHS = 8u;
const VECTORS = (dk + 4u * EIGHTHS - 1u) / (4u * EIGHTHS);  // of four rows that a thread keeps
const COLUMNS = 16u;
const TOKENS = 8u;
const EACH = (EIGHTHS * VECTORS + LANES - 1u) / LANES;  // vectors that a lane fetches

var<workgroup> query: array<array<vec4<f32>, EIGHTHS * VECTORS>, TOKENS>;
var<workgroup> key: array<array<vec4<f32>, EIGHTHS * VECTORS>, TOKENS>;
var<workgroup> value: array<array<f32, COLUMNS>, TOKENS>;
var<workgroup> gates: array<vec2<f32>, TOKENS>;  // decay and beta
var<workgroup> agreed: array<f32, TOKENS>;  // products of query and key
var<workgroup> products: array<array<vec3<f32>, LANES>, TOKENS>;
var<workgroup> known: array<array<array<vec2<f32>, COLUMNS>, EIGHTHS>, 2>;  // of one token, and of the one before
var<private> fetched: array<vec4<f32>, 2u * EACH + 1u>;  // a lane's part of a token: queries, keys, and the rest

// Four numbers of the convolution's from `at`, of which those before `end` count.
fn four_of(at: u32, end: u32) -> vec4<f32> {
    let places = at + vec4<u32>(0u, 1u, 2u, 3u);
    let last = min(places, vec4<u32>(max(end, 1u) - 1u));
    let found = vec4<f32>(scratch[last.x], scratch[last.y], scratch[last.z], scratch[last.w]);
    return select(vec4<f32>(), found, places < vec4<u32>(end));
}

// Begin to bring what eight tokens need, before the eight before them are done with.
fn fetch(first: u32, end: u32, head: u32, first_column: u32, thread: u32) {
    let lane = thread % LANES;
    let token = min(first + thread / LANES, end - 1u);
    let key_head = select(head / READERS, head % key_heads, tiled);
    let at = token * x_columns + key_head * dk;
    for (var i = 0u; i < EACH; i++) {
        let row = 4u * (lane + i * LANES);
        fetched[i] = four_of(at + row, at + dk);
        fetched[EACH + i] = four_of(at + key_heads * dk + row, at + key_heads * dk + dk);
    }
    let column = min(first_column + lane, dv - 1u);
    fetched[2u * EACH] = vec4<f32>(
        gates_of(token, head), scratch[token * x_columns + 2u * key_heads * dk + head * dv + column], 0.0);
}

// Leave what was fetched in workgroup memory, queries and keys of length 1.
fn keep(thread: u32) {
    let place = thread / LANES;
    let lane = thread % LANES;
    var sum = vec3<f32>();
    for (var i = 0u; i < EACH; i++) {
        let a_query = fetched[i];
        let a_key = fetched[EACH + i];
        sum += vec3<f32>(dot(a_query, a_query), dot(a_key, a_key), dot(a_query, a_key));
    }
    products[place][lane] = sum;
    workgroupBarrier();
    sum = vec3<f32>();
    for (var other = 0u; other < LANES; other++) {
        sum += products[place][other];
    }
    let query_scale = to_unit(sum.x) / sqrt(f32(dk));
    let key_scale = to_unit(sum.y);
    for (var i = 0u; i < EACH; i++) {
        if (lane + i * LANES < EIGHTHS * VECTORS) {
            query[place][lane + i * LANES] = select(vec4<f32>(), fetched[i] * query_scale, query_scale > 0.0);
            key[place][lane + i * LANES] = select(vec4<f32>(), fetched[EACH + i] * key_scale, key_scale > 0.0);
        }
    }
    value[place][lane] = fetched[2u * EACH].z;
    if (lane == 0u) {
        gates[place] = fetched[2u * EACH].xy;
        agreed[place] = select(0.0, sum.z * query_scale * key_scale, query_scale > 0.0 && key_scale > 0.0);
    }
    workgroupBarrier();
}

// As `few` does it, one round of sums a token tells what a column holds for its key and for its query.
@compute @workgroup_size(128)
fn then(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let c = thread % COLUMNS;
    let column = group.x * COLUMNS + c;
    let eighth = thread / COLUMNS;
    let head = group.y;
    let begin = inputs[step_offsets + group.z];
    let end = inputs[step_offsets + group.z + 1u];
    if (begin >= end) {
        return;
    }
    var rows = array<vec4<f32>, VECTORS>();
    if (column < dv && inputs[step_positions + begin] > 0u) {
        let slot = (inputs[step_slots + group.z] * value_heads + head) * dk * dv + column;
        for (var i = 0u; i < VECTORS; i++) {
            for (var j = 0u; j < 4u; j++) {
                let row = 4u * (eighth * VECTORS + i) + j;
                rows[i][j] = select(0.0, state[slot + min(row, dk - 1u) * dv], row < dk);
            }
        }
    }
    fetch(begin, end, head, group.x * COLUMNS, thread);
    for (var first = begin; first < end; first += TOKENS) {
        keep(thread);
        fetch(first + TOKENS, end, head, group.x * COLUMNS, thread);
        for (var place = 0u; place < min(TOKENS, end - first); place++) {
            let token = first + place;
            let kept = bitcast<i32>(inputs[step_saves + token]);
            let gate = gates[place];
            var by_key = vec4<f32>();
            var by_query = vec4<f32>();
            for (var i = 0u; i < VECTORS; i++) {
                by_key += rows[i] * key[place][eighth * VECTORS + i];
                by_query += rows[i] * query[place][eighth * VECTORS + i];
            }
            known[place % 2u][eighth][c] = vec2<f32>(dot(by_key, vec4<f32>(1.0)), dot(by_query, vec4<f32>(1.0)));
            workgroupBarrier();
            var found = vec2<f32>();
            for (var other = 0u; other < EIGHTHS; other++) {
                found += known[place % 2u][other][c];
            }
            var change = gate.y * (value[place][c] - gate.x * found.x);
            change = select(0.0, change, is_finite(change));
            for (var i = 0u; i < VECTORS; i++) {
                rows[i] = rows[i] * gate.x + key[place][eighth * VECTORS + i] * change;
            }
            if (eighth == place && column < dv) {
                out[token * out_columns + head * dv + column] = gate.x * found.y + agreed[place] * change;
            }
            if (kept >= 0 && column < dv) {
                let slot = (u32(kept) * value_heads + head) * dk * dv + column;
                for (var i = 0u; i < VECTORS; i++) {
                    for (var j = 0u; j < 4u; j++) {
                        let row = 4u * (eighth * VECTORS + i) + j;
                        if (row < dk) {
                            state[slot + row * dv] = rows[i][j];
                        }
                    }
                }
            }
        }
    }
}

// ---- many tokens: the gated norm ----

@compute @workgroup_size(256)
fn then2(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let first = group.y * out_columns + group.x * dv;
    var answer = 0.0;
    if (thread < dv) {
        answer = out[first + thread];
    }
    told[thread] = answer * answer;
    for (var half = GROUP / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (thread < half) {
            told[thread] += told[thread + half];
        }
    }
    workgroupBarrier();
    if (thread < dv) {
        let factor = inverseSqrt(told[0] / f32(dv) + eps);
        out[first + thread] = answer * factor * norm_weight[thread] * silu(z[first + thread]);
    }
}
