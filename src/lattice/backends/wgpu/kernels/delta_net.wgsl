// A gated delta net between its products: a causal convolution, the gated delta rule, and a gated norm of every head.
// `few`: a workgroup takes a key head of one sequence and, one after the other, the value heads that read with it. All
// channels and states that it reads and saves are its own, so it may save to the slot that it reads; tokens follow one
// another. For many tokens the same in three stages, each as parallel as it can be: `main` and `then` are the kernels
// slot_conv1d and slot_gated_delta, with what the convolution gives in `scratch`, and `then2` norms in place.

// workgroups: ceil(x_columns / 16), step_S
// workgroups then: ceil(out_columns / value_heads / 32), value_heads, step_S
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

// Change a column of a state by a token, and return what it then tells: with a query of length 1, what it held, decayed,
// and the change as far as query and key agree. That takes one round of sums, not one before the change and one behind.
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
            var open = array<f32, CHUNK>();
            for (var place = 0u; place < CHUNK; place++) {
                open[place] = z[min(first + place, end - 1u) * out_columns + head * dv + c];
            }
            if (thread < CHUNK) {
                chunk_gates[thread] = gates_of(min(first + thread, end - 1u), head);
            }
            convolve(first, end, key_head, head, reader + 1u == READERS, thread);
            workgroupBarrier();
            for (var place = 0u; place < CHUNK; place++) {
                if (first + place >= end) {
                    break;
                }
                let token = first + place;
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
                    out[token * out_columns + head * dv + c] = answer * factor * weight * silu(open[place]);
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

// ---- many tokens: the delta rule, 32 columns a workgroup, a thread a quarter of the rows of one ----

const QUARTERS = 4u;
const ROWS = (dk + QUARTERS - 1u) / QUARTERS;
const COLUMNS = 32u;
const TOKENS = 8u;

var<workgroup> query: array<array<f32, QUARTERS * ROWS>, TOKENS>;
var<workgroup> key: array<array<f32, QUARTERS * ROWS>, TOKENS>;
var<workgroup> value: array<array<f32, COLUMNS>, TOKENS>;
var<workgroup> gates: array<vec2<f32>, TOKENS>;  // decay and beta
var<workgroup> squares: array<array<vec2<f32>, LANES>, TOKENS>;
var<workgroup> known: array<array<f32, COLUMNS>, QUARTERS>;
var<workgroup> answers: array<array<f32, COLUMNS>, QUARTERS>;

// Bring what eight tokens need into workgroup memory, queries and keys of length 1.
fn fetch(first: u32, end: u32, head: u32, first_column: u32, thread: u32) {
    let place = thread / LANES;
    let lane = thread % LANES;
    let token = min(first + place, end - 1u);
    let key_head = select(head / READERS, head % key_heads, tiled);
    let at = token * x_columns + key_head * dk;
    var sum = vec2<f32>();
    for (var i = lane; i < dk; i += LANES) {
        let both = vec2<f32>(scratch[at + i], scratch[at + key_heads * dk + i]);
        sum += both * both;
    }
    workgroupBarrier();
    squares[place][lane] = sum;
    if (lane == 0u) {
        gates[place] = gates_of(token, head);
    }
    workgroupBarrier();
    sum = vec2<f32>();
    for (var i = 0u; i < LANES; i++) {
        sum += squares[place][i];
    }
    let scale = vec2<f32>(to_unit(sum.x) / sqrt(f32(dk)), to_unit(sum.y));
    for (var i = lane; i < QUARTERS * ROWS; i += LANES) {
        query[place][i] = 0.0;
        key[place][i] = 0.0;
        if (i < dk && scale.x > 0.0) {
            query[place][i] = scratch[at + i] * scale.x;
        }
        if (i < dk && scale.y > 0.0) {
            key[place][i] = scratch[at + key_heads * dk + i] * scale.y;
        }
    }
    let row = token * x_columns + 2u * key_heads * dk + head * dv;
    for (var c = lane; c < COLUMNS; c += LANES) {
        value[place][c] = scratch[row + min(first_column + c, dv - 1u)];
    }
    workgroupBarrier();
}

@compute @workgroup_size(128)
fn then(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let c = thread % COLUMNS;
    let column = group.x * COLUMNS + c;
    let quarter = thread / COLUMNS;
    let first_row = quarter * ROWS;
    let head = group.y;
    let begin = inputs[step_offsets + group.z];
    let end = inputs[step_offsets + group.z + 1u];
    var own: array<f32, ROWS>;
    if (column < dv && begin < end && inputs[step_positions + begin] > 0u) {
        let slot = (inputs[step_slots + group.z] * value_heads + head) * dk * dv + column;
        for (var i = 0u; i < ROWS; i++) {
            if (first_row + i < dk) {
                own[i] = state[slot + (first_row + i) * dv];
            }
        }
    }
    for (var first = begin; first < end; first += TOKENS) {
        fetch(first, end, head, group.x * COLUMNS, thread);
        for (var place = 0u; place < min(TOKENS, end - first); place++) {
            let token = first + place;
            let gate = gates[place];
            var sum = 0.0;
            for (var i = 0u; i < ROWS; i++) {
                own[i] *= gate.x;
                sum += own[i] * key[place][first_row + i];
            }
            known[quarter][c] = sum;
            workgroupBarrier();
            var change = gate.y * (value[place][c] - (known[0][c] + known[1][c] + known[2][c] + known[3][c]));
            change = select(0.0, change, is_finite(change));
            sum = 0.0;
            for (var i = 0u; i < ROWS; i++) {
                own[i] += key[place][first_row + i] * change;
                sum += own[i] * query[place][first_row + i];
            }
            answers[quarter][c] = sum;
            workgroupBarrier();
            if (quarter == 0u && column < dv) {
                let answer = answers[0][c] + answers[1][c] + answers[2][c] + answers[3][c];
                out[token * out_columns + head * dv + column] = answer;
            }
            if (column < dv) {
                let kept = bitcast<i32>(inputs[step_saves + token]);
                let slot = (u32(max(kept, 0)) * value_heads + head) * dk * dv + column;
                for (var i = 0u; kept >= 0 && i < ROWS; i++) {
                    if (first_row + i < dk) {
                        state[slot + (first_row + i) * dv] = own[i];
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
