// What a token's experts make of it: the sum, in their order, of weight * down (activation(gate x) * up x). Experts are read in
// the format of their file, as project.wgsl reads a matrix; without `up`, gate holds its rows and then those of up.
// `few`: a workgroup takes eight rows of gate and up of one expert of a token, 32 threads a row; `merge` eight rows of down
// for all experts of a token.
// `main`: a workgroup takes 64 rows of gate and up of one expert, and all tokens that chose it, 32 at a time: tiles, 16
// columns at a time, through workgroup memory. `then` does the same with 128 rows of down, `then2` adds a token's up.
// Scratch memory: for each token and place of an expert the activated values, and behind all of them (main) the results.

// workgroups few: ceil(down_2 / 8), ids_columns, x_count
// workgroups merge: ceil(x_columns / 8), x_count
// workgroups: ceil(down_2 / 64), gate_0
// workgroups then: ceil(x_columns / 128), gate_0
// workgroups then2: ceil(x_columns / 256), x_count
// scratch: x_count * ids_columns * down_2 + x_count * ids_columns * x_columns + x_count * ids_columns * 4

@group(0) @binding(0) var<storage, read> inputs: array<u32>;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> ids: array<u32>;
@group(0) @binding(3) var<storage, read> weights: array<f32>;
@group(0) @binding(4) var<storage, read> gate: array<vec4<u32>>;
@group(0) @binding(5) var<storage, read> gate_highs: array<u32>;
@group(0) @binding(6) var<storage, read> gate_scales: array<u32>;
@group(0) @binding(7) var<storage, read> gate_supers: array<u32>;
@group(0) @binding(8) var<storage, read> up: array<vec4<u32>>;
@group(0) @binding(9) var<storage, read> up_highs: array<u32>;
@group(0) @binding(10) var<storage, read> up_scales: array<u32>;
@group(0) @binding(11) var<storage, read> up_supers: array<u32>;
@group(0) @binding(12) var<storage, read> down: array<vec4<u32>>;
@group(0) @binding(13) var<storage, read> down_highs: array<u32>;
@group(0) @binding(14) var<storage, read> down_scales: array<u32>;
@group(0) @binding(15) var<storage, read> down_supers: array<u32>;
@group(0) @binding(16) var<storage, read_write> scratch: array<vec4<f32>>;
@group(0) @binding(17) var<storage, read_write> out: array<f32>;

const n = x_columns;
const m = down_2;
const PLACES = ids_columns;
const INNER = (m + 3u) / 4u;  // vectors of a row of activated values

// Which weight a function reads, and what is known of each.
const GATE = 0u;
const UP = u32(has_up);
const DOWN = 2u;
const f32s = vec3<bool>(gate_f32, up_f32, down_f32);
const f16s = vec3<bool>(gate_f16, up_f16, down_f16);
const bf16s = vec3<bool>(gate_bf16, up_bf16, down_bf16);
const q8_0 = vec3<bool>(gate_q8_0, up_q8_0, down_q8_0);
const q4_0 = vec3<bool>(gate_q4_0, up_q4_0, down_q4_0);
const q4_1 = vec3<bool>(gate_q4_1, up_q4_1, down_q4_1);
const q5_0 = vec3<bool>(gate_q5_0, up_q5_0, down_q5_0);
const q5_1 = vec3<bool>(gate_q5_1, up_q5_1, down_q5_1);
const q5_k = vec3<bool>(gate_q5_k, up_q5_k, down_q5_k);
const q6_k = vec3<bool>(gate_q6_k, up_q6_k, down_q6_k);

fn columns_of(which: u32) -> u32 {
    return select(n, m, which == DOWN);
}

fn blocks_of(which: u32) -> u32 {
    return (columns_of(which) + 31u) / 32u;
}

fn words_at(which: u32, at: u32) -> vec4<u32> {
    if (which == GATE) {
        return gate[at];
    }
    if (which == DOWN) {
        return down[at];
    }
    return up[at];
}

fn highs_at(which: u32, at: u32) -> u32 {
    if (which == GATE) {
        return gate_highs[at];
    }
    if (which == DOWN) {
        return down_highs[at];
    }
    return up_highs[at];
}

fn scales_at(which: u32, at: u32) -> u32 {
    if (which == GATE) {
        return gate_scales[at];
    }
    if (which == DOWN) {
        return down_scales[at];
    }
    return up_scales[at];
}

fn supers_at(which: u32, at: u32) -> u32 {
    if (which == GATE) {
        return gate_supers[at];
    }
    if (which == DOWN) {
        return down_supers[at];
    }
    return up_supers[at];
}

// Where row j of an expert's up lies.
fn up_row(expert: u32, j: u32) -> u32 {
    return expert * gate_1 + select(m, 0u, has_up) + j;
}

const SQRT_HALF = 0.70710678118654752;

// 1 - erf(|x|) by 7.1.26 of Abramowitz and Stegun, whose error is at most 1.5e-7.
fn erf_rest(x: f32) -> f32 {
    let t = 1.0 / (1.0 + 0.3275911 * abs(x));
    let series = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
    return series * exp(-x * x);
}

fn activate(x: f32) -> f32 {
    if (kind_none) {
        return x;
    }
    if (kind_silu) {
        return x / (1.0 + exp(-x));
    }
    if (kind_sigmoid) {
        return 1.0 / (1.0 + exp(-x));
    }
    if (kind_relu) {
        return max(x, 0.0);
    }
    if (kind_gelu) {
        let rest = erf_rest(x * SQRT_HALF);
        return 0.5 * x * select(rest, 2.0 - rest, x > 0.0);
    }
    // tanh overflows on some cards where its argument is large
    let inner = clamp(0.7978845608028654 * (x + 0.044715 * x * x * x), -20.0, 20.0);
    return 0.5 * x * (1.0 + tanh(inner));
}

struct Block {
    quants: array<vec4<f32>, 8>,
    scale: vec2<f32>,  // of the first 16 values and of the others
    low: vec2<f32>,
}

fn half_of(words: u32, at: u32) -> f32 {
    return unpack2x16float(words)[at & 1u];
}

// The value at an index of a plain matrix.
fn plain_value(which: u32, at: u32) -> f32 {
    if (f32s[which]) {
        return bitcast<f32>(words_at(which, at / 4u)[at % 4u]);
    }
    let word = words_at(which, at / 8u)[(at / 2u) % 4u];
    if (f16s[which]) {
        return half_of(word, at);
    }
    return bitcast<f32>(select(word << 16u, word & 0xffff0000u, (at & 1u) == 1u));
}

fn plain_four(which: u32, row: u32, column: u32) -> vec4<f32> {
    let columns = columns_of(which);
    let at = row * columns + column;
    if (columns % 4u == 0u) {
        if (columns % 32u != 0u && column >= columns) {
            return vec4<f32>();
        }
        if (f32s[which]) {
            return bitcast<vec4<f32>>(words_at(which, at / 4u));
        }
        let words = words_at(which, at / 8u);
        let pair = select(words.xy, words.zw, (at & 4u) != 0u);
        if (f16s[which]) {
            return vec4<f32>(unpack2x16float(pair.x), unpack2x16float(pair.y));
        }
        let each = vec4<u32>(pair.x << 16u, pair.x & 0xffff0000u, pair.y << 16u, pair.y & 0xffff0000u);
        return bitcast<vec4<f32>>(each);
    }
    var four = vec4<f32>();
    for (var i = 0u; i < 4u; i++) {
        if (column + i < columns) {
            four[i] = plain_value(which, at + i);
        }
    }
    return four;
}

fn bytes(word: u32) -> vec4<f32> {
    return vec4<f32>(unpack4xU8(word));
}

// Bit 4 of four values: four bits of a word, each where bit 4 of a byte is.
fn fifth(bits: u32, at: u32) -> u32 {
    let four = bits >> at;
    return ((four & 1u) << 4u) | ((four & 2u) << 11u) | ((four & 4u) << 18u) | ((four & 8u) << 25u);
}

fn block_of(which: u32, row: u32, b: u32) -> Block {
    var made: Block;
    made.scale = vec2<f32>(1.0);
    let at = row * blocks_of(which) + b;
    if (f32s[which] || f16s[which] || bf16s[which]) {
        for (var i = 0u; i < 8u; i++) {
            made.quants[i] = plain_four(which, row, b * 32u + 4u * i);
        }
        return made;
    }
    if (q8_0[which]) {
        let first = words_at(which, 2u * at);
        let second = words_at(which, 2u * at + 1u);
        made.quants = array<vec4<f32>, 8>(
            vec4<f32>(unpack4xI8(first.x)), vec4<f32>(unpack4xI8(first.y)),
            vec4<f32>(unpack4xI8(first.z)), vec4<f32>(unpack4xI8(first.w)),
            vec4<f32>(unpack4xI8(second.x)), vec4<f32>(unpack4xI8(second.y)),
            vec4<f32>(unpack4xI8(second.z)), vec4<f32>(unpack4xI8(second.w)));
        made.scale = vec2<f32>(half_of(scales_at(which, at / 2u), at));
        return made;
    }
    let words = words_at(which, at);
    var low = words & vec4<u32>(0x0f0f0f0fu);
    var high = (words >> vec4<u32>(4u)) & vec4<u32>(0x0f0f0f0fu);
    if (q5_0[which] || q5_1[which] || q5_k[which]) {
        let bits = highs_at(which, at);
        low |= vec4<u32>(fifth(bits, 0u), fifth(bits, 4u), fifth(bits, 8u), fifth(bits, 12u));
        high |= vec4<u32>(fifth(bits, 16u), fifth(bits, 20u), fifth(bits, 24u), fifth(bits, 28u));
    }
    if (q6_k[which]) {
        let a = highs_at(which, 2u * at);
        let c = highs_at(which, 2u * at + 1u);
        let mask = vec4<u32>(0x30303030u);
        low |= vec4<u32>(a << 4u, c << 4u, a << 2u, c << 2u) & mask;
        high |= vec4<u32>(a, c, a >> 2u, c >> 2u) & mask;
    }
    made.quants = array<vec4<f32>, 8>(
        bytes(low.x), bytes(low.y), bytes(low.z), bytes(low.w),
        bytes(high.x), bytes(high.y), bytes(high.z), bytes(high.w));
    if (q4_0[which] || q5_0[which]) {
        made.scale = vec2<f32>(half_of(scales_at(which, at / 2u), at));
        made.low = made.scale * select(-8.0, -16.0, q5_0[which]);
    } else if (q4_1[which] || q5_1[which]) {
        let pair = unpack2x16float(scales_at(which, at));
        made.scale = pair.xx;
        made.low = pair.yy;
    } else if (q6_k[which]) {
        let word = scales_at(which, at / 2u);
        let pair = select(vec2<u32>(word << 24u, word << 16u), vec2<u32>(word << 8u, word), (at & 1u) == 1u);
        let above = half_of(supers_at(which, at / 16u), at / 8u);
        made.scale = vec2<f32>(bitcast<vec2<i32>>(pair) >> vec2<u32>(24u)) * above;
        made.low = -32.0 * made.scale;
    } else {
        let pair = unpack2x16float(supers_at(which, at / 8u));
        let word = scales_at(which, at / 2u) >> (16u * (at & 1u));
        made.scale = vec2<f32>(pair.x * f32(word & 255u));
        made.low = vec2<f32>(-pair.y * f32((word >> 8u) & 255u));
    }
    return made;
}

// Four values of a row from a column that is a multiple of four.
fn weight_four(which: u32, row: u32, column: u32) -> vec4<f32> {
    if (f32s[which] || f16s[which] || bf16s[which]) {
        return plain_four(which, row, column);
    }
    let at = row * blocks_of(which) + column / 32u;
    let i = column % 32u / 4u;  // which four of the block
    if (q8_0[which]) {
        let scale = half_of(scales_at(which, at / 2u), at);
        return vec4<f32>(unpack4xI8(words_at(which, 2u * at + i / 4u)[i % 4u])) * scale;
    }
    var quants = (words_at(which, at)[i % 4u] >> (i & 4u)) & 0x0f0f0f0fu;
    if (q5_0[which] || q5_1[which] || q5_k[which]) {
        quants |= fifth(highs_at(which, at), 4u * i);
    }
    if (q6_k[which]) {
        // Byte j of 8 holds the high bits of values j, j + 8, j + 16 and j + 24.
        quants |= ((highs_at(which, 2u * at + (i & 1u)) >> (i & 6u)) & 0x03030303u) << 4u;
    }
    let values = bytes(quants);
    if (q4_0[which] || q5_0[which]) {
        return (values - select(8.0, 16.0, q5_0[which])) * half_of(scales_at(which, at / 2u), at);
    }
    if (q4_1[which] || q5_1[which]) {
        let pair = unpack2x16float(scales_at(which, at));
        return values * pair.x + pair.y;
    }
    if (q6_k[which]) {
        let scale = unpack4xI8(scales_at(which, at / 2u))[(at & 1u) * 2u + i / 4u];
        return (values - 32.0) * (f32(scale) * half_of(supers_at(which, at / 16u), at / 8u));
    }
    let pair = unpack2x16float(supers_at(which, at / 8u));
    let word = scales_at(which, at / 2u) >> (16u * (at & 1u));
    return values * (pair.x * f32(word & 255u)) - pair.y * f32((word >> 8u) & 255u);
}

fn x_four(token: u32, column: u32) -> vec4<f32> {
    let at = token * n + column;
    if (n % 4u == 0u) {
        if (n % 32u != 0u && column >= n) {
            return vec4<f32>();
        }
        return x[at / 4u];
    }
    var four = vec4<f32>();
    for (var i = 0u; i < 4u; i++) {
        if (column + i < n) {
            four[i] = x[(at + i) / 4u][(at + i) % 4u];
        }
    }
    return four;
}

// Four activated values of a token's expert; a pair is both: token * PLACES + place.
fn inner_four(pair: u32, column: u32) -> vec4<f32> {
    if (m % 32u != 0u && column >= m) {
        return vec4<f32>();
    }
    let four = scratch[pair * INNER + column / 4u];
    if (m % 4u == 0u) {
        return four;
    }
    return select(vec4<f32>(), four, column + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(m));
}

fn put_inner(pair: u32, j: u32, gated: f32, raised: f32) {
    scratch[pair * INNER + j / 4u][j % 4u] = activate(gated) * raised;
}

const ONES = vec4<f32>(1.0);

fn product(made: Block, v: array<vec4<f32>, 8>, sums: vec2<f32>) -> f32 {
    let q = made.quants;
    let first = dot(q[0], v[0]) + dot(q[1], v[1]) + dot(q[2], v[2]) + dot(q[3], v[3]);
    let second = dot(q[4], v[4]) + dot(q[5], v[5]) + dot(q[6], v[6]) + dot(q[7], v[7]);
    return dot(made.scale, vec2<f32>(first, second)) + dot(made.low, sums);
}

fn sums_of(v: array<vec4<f32>, 8>) -> vec2<f32> {
    return vec2<f32>(dot(v[0] + v[1] + v[2] + v[3], ONES), dot(v[4] + v[5] + v[6] + v[7], ONES));
}

const LANES = 32u;  // threads of a row: a team

var<workgroup> partial: array<vec2<f32>, 256>;

// The sums over a team, for its first lane.
fn team_total(value: vec2<f32>, thread: u32) -> vec2<f32> {
    partial[thread] = value;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (thread % LANES < half) {
            partial[thread] += partial[thread + half];
        }
    }
    return partial[thread];
}

@compute @workgroup_size(256)
fn few(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let token = group.z;
    let pair = token * PLACES + group.y;
    let expert = ids[pair];
    let lane = thread % LANES;
    let j = group.x * 8u + thread / LANES;
    let row = min(j, m - 1u);
    var sum = vec2<f32>();
    for (var trip = 0u; trip < (blocks_of(GATE) + LANES - 1u) / LANES; trip++) {
        let b = trip * LANES + lane;
        if (b >= blocks_of(GATE)) {
            break;
        }
        let gated = block_of(GATE, expert * gate_1 + row, b);
        let raised = block_of(UP, up_row(expert, row), b);
        var v = array<vec4<f32>, 8>();
        for (var i = 0u; i < 8u; i++) {
            v[i] = x_four(token, b * 32u + 4u * i);
        }
        let sums = sums_of(v);
        sum += vec2<f32>(product(gated, v, sums), product(raised, v, sums));
    }
    let found = team_total(sum, thread);
    if (lane == 0u && j < m) {
        put_inner(pair, j, found.x, found.y);
    }
}

@compute @workgroup_size(256)
fn merge(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let token = group.y;
    let lane = thread % LANES;
    let i = group.x * 8u + thread / LANES;
    let row = min(i, n - 1u);
    var sum = 0.0;
    for (var trip = 0u; trip < (PLACES * blocks_of(DOWN) + LANES - 1u) / LANES; trip++) {
        let at = trip * LANES + lane;
        if (at >= PLACES * blocks_of(DOWN)) {
            break;
        }
        let pair = token * PLACES + at / blocks_of(DOWN);
        let b = at % blocks_of(DOWN);
        let weight = weights[pair];
        let made = block_of(DOWN, ids[pair] * n + row, b);
        var v = array<vec4<f32>, 8>();
        for (var k = 0u; k < 8u; k++) {
            v[k] = inner_four(pair, b * 32u + 4u * k);
        }
        sum += select(0.0, weight * product(made, v, sums_of(v)), weight != 0.0);
    }
    let found = team_total(vec2<f32>(sum, 0.0), thread);
    if (lane == 0u && i < n) {
        out[token * n + i] = found.x;
    }
}

const LISTED = 3072u;  // pairs of an expert that are known together
const LOOKED = 1024u;  // pairs that are looked at together
const TILE = 32u;  // pairs of a tile
var<workgroup> listed: array<u32, LISTED>;
var<workgroup> count: atomic<u32>;
// Columns of a tile, each as vectors of four pairs or of four rows.
var<workgroup> left: array<vec4<f32>, 144>;  // 16 columns of eight vectors, and one more of padding each
var<workgroup> right: array<vec4<f32>, 528>;  // 16 columns of 32 vectors and one

// Four values of a row of a tile: of down, or two rows of gate and the two of up in turns.
fn tile_four(is_down: bool, expert: u32, first_row: u32, row: u32, column: u32) -> vec4<f32> {
    if (is_down) {
        return weight_four(DOWN, expert * n + min(first_row + row, n - 1u), column);
    }
    let j = min(first_row + row / 4u * 2u + row % 2u, m - 1u);
    if (row % 4u < 2u) {
        return weight_four(GATE, expert * gate_1 + j, column);
    }
    return weight_four(UP, up_row(expert, j), column);
}

// Four values of what a tile's pair is multiplied with, for the threads that bring them.
fn values_of(is_down: bool, pair: u32, row: u32, column: u32) -> vec4<f32> {
    if (row >= TILE) {
        return vec4<f32>();
    }
    if (is_down) {
        return inner_four(pair, column);
    }
    return x_four(pair / PLACES, column);
}

fn put_result(is_down: bool, first_row: u32, j: u32, listed_at: u32, end: u32, found: vec4<f32>, results: u32) {
    if (listed_at >= end) {
        return;
    }
    let pair = listed[listed_at];
    if (is_down) {
        for (var r = 0u; r < 4u; r++) {
            let i = first_row + 4u * j + r;
            if (i < n) {
                let at = results + pair * n + i;
                scratch[at / 4u][at % 4u] = found[r];
            }
        }
        return;
    }
    for (var r = 0u; r < 2u; r++) {
        if (first_row + 2u * j + r < m) {
            put_inner(pair, first_row + 2u * j + r, found[r], found[2u + r]);
        }
    }
}

// A tile: the pairs of the list from `begin` to before `end`, 128 rows of an expert.
fn tile(is_down: bool, expert: u32, first_row: u32, begin: u32, end: u32, results: u32, thread: u32) {
    let i = thread / 32u;  // four pairs: threads that have none beside them have none, too
    let j = thread % 32u;  // four rows
    let row = thread / 4u;
    let part = thread % 4u;
    let pair = listed[min(begin + row, end - 1u)];
    var a0 = vec4<f32>();
    var a1 = vec4<f32>();
    var a2 = vec4<f32>();
    var a3 = vec4<f32>();
    let columns = select(blocks_of(GATE), blocks_of(DOWN), is_down) * 32u;
    let used = begin + 4u * i < end;
    var w0 = tile_four(is_down, expert, first_row, row, part * 4u);
    var w1 = tile_four(is_down, expert, first_row, row + 64u, part * 4u);
    var values = values_of(is_down, pair, row, part * 4u);
    for (var c = 0u; c < columns; c += 16u) {
        workgroupBarrier();
        for (var d = 0u; d < 4u; d++) {
            let k = part * 4u + d;
            right[k * 33u + row / 4u][row % 4u] = w0[d];
            right[k * 33u + 16u + row / 4u][row % 4u] = w1[d];
            if (row < TILE) {
                left[k * 9u + row / 4u][row % 4u] = values[d];
            }
        }
        workgroupBarrier();
        let next = min(c + 16u, columns - 16u) + part * 4u;  // under way while these are multiplied
        w0 = tile_four(is_down, expert, first_row, row, next);
        w1 = tile_four(is_down, expert, first_row, row + 64u, next);
        values = values_of(is_down, pair, row, next);
        if (used) {
            for (var k = 0u; k < 16u; k++) {
                let r = right[k * 33u + j];
                let l = left[k * 9u + i];
                a0 += l.x * r;
                a1 += l.y * r;
                a2 += l.z * r;
                a3 += l.w * r;
            }
        }
    }
    put_result(is_down, first_row, j, begin + 4u * i, end, a0, results);
    put_result(is_down, first_row, j, begin + 4u * i + 1u, end, a1, results);
    put_result(is_down, first_row, j, begin + 4u * i + 2u, end, a2, results);
    put_result(is_down, first_row, j, begin + 4u * i + 3u, end, a3, results);
}

// All tokens that chose an expert.
fn all_tiles(is_down: bool, expert: u32, first_row: u32, thread: u32) {
    let pairs = inputs[x_count] * PLACES;
    let results = pairs * INNER * 4u;
    if (thread == 0u) {
        atomicStore(&count, 0u);
    }
    workgroupBarrier();
    for (var begin = 0u; begin < pairs; begin += LOOKED) {
        for (var i = 0u; i < LOOKED; i += 256u) {
            let pair = begin + i + thread;
            if (pair < pairs) {
                if (ids[pair] == expert && weights[pair] != 0.0) {
                    listed[atomicAdd(&count, 1u)] = pair;
                }
            }
        }
        workgroupBarrier();
        let held = atomicLoad(&count);
        workgroupBarrier();
        if (begin + LOOKED >= pairs || held + LOOKED > LISTED) {
            for (var first = 0u; first < held; first += TILE) {
                tile(is_down, expert, first_row, first, min(first + TILE, held), results, thread);
            }
            workgroupBarrier();
            if (thread == 0u) {
                atomicStore(&count, 0u);
            }
            workgroupBarrier();
        }
    }
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    all_tiles(false, group.y, group.x * 64u, thread);
}

@compute @workgroup_size(256)
fn then(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    all_tiles(true, group.y, group.x * 128u, thread);
}

@compute @workgroup_size(256)
fn then2(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let i = group.x * 256u + thread;
    if (i >= n) {
        return;
    }
    let results = inputs[x_count] * PLACES * INNER * 4u;
    var sum = 0.0;
    for (var place = 0u; place < PLACES; place++) {
        let pair = group.y * PLACES + place;
        let weight = weights[pair];
        if (weight != 0.0) {
            let at = results + pair * n + i;
            sum += weight * scratch[at / 4u][at % 4u];
        }
    }
    out[group.y * n + i] = sum;
}
