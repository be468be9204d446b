// What follows from one input: norm(x) W^T + bias, then activation, gate or residual; `linear` and its fused form `project`.
// W is one matrix or several with the same input, one below the other (gated: their rows by turns), in the format of its
// file: rows of blocks of 32 values, each value = scale * quant + low.
// `few`: x, normalised, is brought into workgroup memory once for eight teams of 32 threads; a team takes one row, two (a
// gated pair) or four (of a matrix of many), a thread a block of each at a time.
// `main`: tiles of 128 tokens by 64 rows, 16 columns at a time, through workgroup memory; a thread makes 8 by 4 results.
// Tiles of a small matrix are too few for a wide card: 6 of 384 rows, however few the tokens. `few` then reads it again
// for every token; workgroups side by side take tokens, so that the card's cache gives them the same rows.
// The root mean square of a row multiplies its results: it is known when they are, and x is read once.

// workgroups few: x_count, ceil(weight_some / 8 / weight_each)
// workgroups: ceil(x_count / 128), ceil(weight_some / 64)
// few: ceil(80000 / weight_some)

@group(0) @binding(0) var<storage, read> inputs: array<u32>;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> norm_weight: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> norm_bias: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> residual: array<f32>;
@group(0) @binding(5) var<storage, read> weight: array<vec4<u32>>;
@group(0) @binding(6) var<storage, read> weight_highs: array<u32>;
@group(0) @binding(7) var<storage, read> weight_scales: array<u32>;
@group(0) @binding(8) var<storage, read> weight_supers: array<u32>;
@group(0) @binding(9) var<storage, read> bias: array<f32>;
@group(0) @binding(10) var<storage, read_write> out0: array<f32>;
@group(0) @binding(11) var<storage, read_write> out1: array<f32>;
@group(0) @binding(12) var<storage, read_write> out2: array<f32>;
@group(0) @binding(13) var<storage, read_write> out3: array<f32>;

const columns = x_columns;
const blocks = (columns + 31u) / 32u;
const whole = columns % 32u == 0u;
const plain = weight_f32 || weight_f16 || weight_bf16;

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
fn plain_value(at: u32) -> f32 {
    if (weight_f32) {
        return bitcast<f32>(weight[at / 4u][at % 4u]);
    }
    let word = weight[at / 8u][(at / 2u) % 4u];
    if (weight_f16) {
        return half_of(word, at);
    }
    return bitcast<f32>(select(word << 16u, word & 0xffff0000u, (at & 1u) == 1u));
}

fn plain_four(row: u32, column: u32) -> vec4<f32> {
    let at = row * columns + column;
    if (columns % 4u == 0u) {
        if (!whole && column >= columns) {
            return vec4<f32>();
        }
        if (weight_f32) {
            return bitcast<vec4<f32>>(weight[at / 4u]);
        }
        let pair = select(weight[at / 8u].xy, weight[at / 8u].zw, (at & 4u) != 0u);
        if (weight_f16) {
            return vec4<f32>(unpack2x16float(pair.x), unpack2x16float(pair.y));
        }
        let words = vec4<u32>(pair.x << 16u, pair.x & 0xffff0000u, pair.y << 16u, pair.y & 0xffff0000u);
        return bitcast<vec4<f32>>(words);
    }
    var four = vec4<f32>();
    for (var i = 0u; i < 4u; i++) {
        if (column + i < columns) {
            four[i] = plain_value(at + i);
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

fn block_of(row: u32, b: u32) -> Block {
    var made: Block;
    made.scale = vec2<f32>(1.0);
    let at = row * blocks + b;
    if (plain) {
        for (var i = 0u; i < 8u; i++) {
            made.quants[i] = plain_four(row, b * 32u + 4u * i);
        }
        return made;
    }
    if (weight_q8_0) {
        let first = weight[2u * at];
        let second = weight[2u * at + 1u];
        made.quants = array<vec4<f32>, 8>(
            vec4<f32>(unpack4xI8(first.x)), vec4<f32>(unpack4xI8(first.y)),
            vec4<f32>(unpack4xI8(first.z)), vec4<f32>(unpack4xI8(first.w)),
            vec4<f32>(unpack4xI8(second.x)), vec4<f32>(unpack4xI8(second.y)),
            vec4<f32>(unpack4xI8(second.z)), vec4<f32>(unpack4xI8(second.w)));
        made.scale = vec2<f32>(half_of(weight_scales[at / 2u], at));
        return made;
    }
    let words = weight[at];
    var low = words & vec4<u32>(0x0f0f0f0fu);
    var high = (words >> vec4<u32>(4u)) & vec4<u32>(0x0f0f0f0fu);
    if (weight_q5_0 || weight_q5_1 || weight_q5_k) {
        let bits = weight_highs[at];
        low |= vec4<u32>(fifth(bits, 0u), fifth(bits, 4u), fifth(bits, 8u), fifth(bits, 12u));
        high |= vec4<u32>(fifth(bits, 16u), fifth(bits, 20u), fifth(bits, 24u), fifth(bits, 28u));
    }
    if (weight_q6_k) {
        let a = weight_highs[2u * at];
        let c = weight_highs[2u * at + 1u];
        let mask = vec4<u32>(0x30303030u);
        low |= vec4<u32>(a << 4u, c << 4u, a << 2u, c << 2u) & mask;
        high |= vec4<u32>(a, c, a >> 2u, c >> 2u) & mask;
    }
    made.quants = array<vec4<f32>, 8>(
        bytes(low.x), bytes(low.y), bytes(low.z), bytes(low.w),
        bytes(high.x), bytes(high.y), bytes(high.z), bytes(high.w));
    if (weight_q4_0 || weight_q5_0) {
        made.scale = vec2<f32>(half_of(weight_scales[at / 2u], at));
        made.low = made.scale * select(-8.0, -16.0, weight_q5_0);
    } else if (weight_q4_1 || weight_q5_1) {
        let pair = unpack2x16float(weight_scales[at]);
        made.scale = pair.xx;
        made.low = pair.yy;
    } else if (weight_q6_k) {
        let word = weight_scales[at / 2u];
        let pair = select(vec2<u32>(word << 24u, word << 16u), vec2<u32>(word << 8u, word), (at & 1u) == 1u);
        made.scale = vec2<f32>(bitcast<vec2<i32>>(pair) >> vec2<u32>(24u)) * half_of(weight_supers[at / 16u], at / 8u);
        made.low = -32.0 * made.scale;
    } else {
        let pair = unpack2x16float(weight_supers[at / 8u]);
        let word = weight_scales[at / 2u] >> (16u * (at & 1u));
        made.scale = vec2<f32>(pair.x * f32(word & 255u));
        made.low = vec2<f32>(-pair.y * f32((word >> 8u) & 255u));
    }
    return made;
}

fn x_four(token: u32, column: u32) -> vec4<f32> {
    let at = token * columns + column;
    if (columns % 4u == 0u) {
        if (!whole && column >= columns) {
            return vec4<f32>();
        }
        return x[at / 4u];
    }
    var four = vec4<f32>();
    for (var i = 0u; i < 4u; i++) {
        if (column + i < columns) {
            four[i] = x[(at + i) / 4u][(at + i) % 4u];
        }
    }
    return four;
}

// Values as the product sees them; a root mean square is left to the results.
fn normed(values: vec4<f32>, column: u32, mean: f32, inverse: f32) -> vec4<f32> {
    if (norm_none || (!whole && column >= columns)) {
        return values;
    }
    if (norm_rms) {
        return values * norm_weight[column / 4u];
    }
    let shifted = (values - mean) * inverse * norm_weight[column / 4u] + norm_bias[column / 4u];
    if (columns % 4u == 0u) {
        return shifted;
    }
    return select(vec4<f32>(), shifted, vec4<u32>(column, column + 1u, column + 2u, column + 3u) < vec4<u32>(columns));
}

fn of_squares(sum: f32) -> f32 {
    return select(1.0, inverseSqrt(sum / f32(columns) + eps), norm_rms);
}

fn product(made: Block, v: array<vec4<f32>, 8>, sums: vec2<f32>) -> f32 {
    let q = made.quants;
    let first = dot(q[0], v[0]) + dot(q[1], v[1]) + dot(q[2], v[2]) + dot(q[3], v[3]);
    let second = dot(q[4], v[4]) + dot(q[5], v[5]) + dot(q[6], v[6]) + dot(q[7], v[7]);
    return dot(made.scale, vec2<f32>(first, second)) + dot(made.low, sums);
}

// A result to where it belongs.
fn place(token: u32, row: u32, value: f32) {
    var found = value;
    if (has_residual) {
        found += residual[token * width_0 + row];
    }
    if (row < width_0) {
        out0[token * width_0 + row] = found;
    } else if (row < width_0 + width_1) {
        out1[token * width_1 + row - width_0] = found;
    } else if (row < width_0 + width_1 + width_2) {
        out2[token * width_2 + row - width_0 - width_1] = found;
    } else {
        out3[token * width_3 + row - width_0 - width_1 - width_2] = found;
    }
}

// The first `count` of four products of a token.
fn put(token: u32, first: u32, count: u32, products: vec4<f32>) {
    var values = products;
    let row = weight_first + first;
    for (var r = 0u; r < 4u; r++) {
        if (has_bias && r < count) {
            values[r] += bias[row + r];
        }
    }
    if (gated) {
        place(token, row / 2u, activate(values.x) * values.y);
        if (count > 2u) {
            place(token, row / 2u + 1u, activate(values.z) * values.w);
        }
        return;
    }
    for (var r = 0u; r < 4u; r++) {
        if (r < count) {
            place(token, row + r, activate(values[r]));
        }
    }
}

const LANES = 32u;  // threads that share rows: a team
const TEAMS = 8u;
const GROUP = LANES * TEAMS;
const MOST = 112u;  // blocks of x that lie in workgroup memory together
const STAGES = (blocks + MOST - 1u) / MOST;
const STAGED = (blocks + STAGES - 1u) / STAGES;
const EACH = weight_each;  // rows of a team

var<workgroup> staged: array<vec4<f32>, 8u * STAGED>;  // a block's eight vectors lie STAGED apart: no two lanes share a bank
var<workgroup> partial: array<vec4<f32>, GROUP>;
var<workgroup> numbers: array<f32, GROUP>;

// The sum over a workgroup, for each of its threads.
fn total(value: f32, thread: u32) -> f32 {
    workgroupBarrier();
    numbers[thread] = value;
    for (var half = GROUP / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (thread < half) {
            numbers[thread] += numbers[thread + half];
        }
    }
    workgroupBarrier();
    return numbers[0];
}

// The sums over a team, for its first lane.
fn team_total(value: vec4<f32>, thread: u32) -> vec4<f32> {
    partial[thread] = value;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (thread % LANES < half) {
            partial[thread] += partial[thread + half];
        }
    }
    return partial[thread];
}

// Mean, and the inverse of the standard deviation, of a token's x.
fn moments(token: u32, thread: u32) -> vec2<f32> {
    var sum = 0.0;
    for (var c = thread; c < columns; c += GROUP) {
        sum += x[(token * columns + c) / 4u][(token * columns + c) % 4u];
    }
    let mean = total(sum, thread) / f32(columns);
    sum = 0.0;
    for (var c = thread; c < columns; c += GROUP) {
        let value = x[(token * columns + c) / 4u][(token * columns + c) % 4u] - mean;
        sum += value * value;
    }
    return vec2<f32>(mean, inverseSqrt(total(sum, thread) / f32(columns) + eps));
}

@compute @workgroup_size(256)
fn few(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let token = group.x;
    let lane = thread % LANES;
    let first = (group.y * TEAMS + thread / LANES) * EACH;
    let last = weight_some - 1u;
    let ones = vec4<f32>(1.0);
    var moment = vec2<f32>(0.0, 1.0);
    if (norm_layer) {
        moment = moments(token, thread);
    }
    var squares = vec4<f32>();
    var sum = vec4<f32>();
    for (var stage = 0u; stage < STAGES; stage++) {
        let begin = stage * STAGED;
        if (stage > 0u) {
            workgroupBarrier();
        }
        for (var i = thread; i < 8u * STAGED; i += GROUP) {
            let column = begin * 32u + 4u * i;
            var values = vec4<f32>();
            if (STAGES == 1u || column < blocks * 32u) {
                values = x_four(token, column);
            }
            if (norm_rms) {
                squares += values * values;
            }
            if (column < columns) {
                values = normed(values, column, moment.x, moment.y);
            }
            staged[i % 8u * STAGED + i / 8u] = values;
        }
        workgroupBarrier();
        for (var trip = 0u; trip < (STAGED + LANES - 1u) / LANES; trip++) {
            let own = trip * LANES + lane;
            let b = begin + own;
            if (own >= STAGED || b >= blocks) {
                continue;
            }
            var v = array<vec4<f32>, 8>();
            for (var i = 0u; i < 8u; i++) {
                v[i] = staged[i * STAGED + own];
            }
            let sums = vec2<f32>(dot(v[0] + v[1] + v[2] + v[3], ones), dot(v[4] + v[5] + v[6] + v[7], ones));
            sum.x += product(block_of(min(first, last), b), v, sums);
            if (EACH > 1u) {
                sum.y += product(block_of(min(first + 1u, last), b), v, sums);
            }
            if (EACH > 2u) {
                sum.z += product(block_of(min(first + 2u, last), b), v, sums);
                sum.w += product(block_of(min(first + 3u, last), b), v, sums);
            }
        }
    }
    var factor = 1.0;
    if (norm_rms) {
        factor = of_squares(total(dot(squares, ones), thread));
    }
    let found = team_total(sum, thread);
    if (lane == 0u && first < weight_some) {
        put(token, first, min(EACH, weight_some - first), found * factor);
    }
}

// Four values of a row from a column that is a multiple of four.
fn weight_four(row: u32, column: u32) -> vec4<f32> {
    if (plain) {
        return plain_four(row, column);
    }
    let at = row * blocks + column / 32u;
    let i = column % 32u / 4u;  // which four of the block
    if (weight_q8_0) {
        return vec4<f32>(unpack4xI8(weight[2u * at + i / 4u][i % 4u])) * half_of(weight_scales[at / 2u], at);
    }
    var quants = (weight[at][i % 4u] >> (i & 4u)) & 0x0f0f0f0fu;
    if (weight_q5_0 || weight_q5_1 || weight_q5_k) {
        quants |= fifth(weight_highs[at], 4u * i);
    }
    if (weight_q6_k) {
        // Byte j of 8 holds the high bits of values j, j + 8, j + 16 and j + 24.
        quants |= ((weight_highs[2u * at + (i & 1u)] >> (i & 6u)) & 0x03030303u) << 4u;
    }
    let values = bytes(quants);
    if (weight_q4_0 || weight_q5_0) {
        return (values - select(8.0, 16.0, weight_q5_0)) * half_of(weight_scales[at / 2u], at);
    }
    if (weight_q4_1 || weight_q5_1) {
        let pair = unpack2x16float(weight_scales[at]);
        return values * pair.x + pair.y;
    }
    if (weight_q6_k) {
        let scale = unpack4xI8(weight_scales[at / 2u])[(at & 1u) * 2u + i / 4u];
        return (values - 32.0) * (f32(scale) * half_of(weight_supers[at / 16u], at / 8u));
    }
    let pair = unpack2x16float(weight_supers[at / 8u]);
    let word = weight_scales[at / 2u] >> (16u * (at & 1u));
    return values * (pair.x * f32(word & 255u)) - pair.y * f32((word >> 8u) & 255u);
}

// Columns of a tile, each as vectors of four tokens or rows.
var<workgroup> left: array<vec4<f32>, 528>;  // 16 columns of 32 vectors, and one more of padding each
var<workgroup> right: array<vec4<f32>, 272>;  // 16 columns of 16 vectors and one
var<workgroup> of_token: array<vec4<f32>, 128>;  // four threads' sums of a token: of squares, or of values

fn sum_of_token(token: u32) -> f32 {
    return dot(of_token[token], vec4<f32>(1.0));
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let tokens = inputs[x_count];
    let first_token = group.x * 128u;
    let first_row = group.y * 64u;
    let i = thread % 16u;  // eight tokens: 4 i to 4 i + 3, and 64 beyond
    let j = thread / 16u;  // four rows: 4 j to 4 j + 3
    let row = thread / 4u;
    let part = thread % 4u;
    let token0 = min(first_token + row, tokens - 1u);
    let token1 = min(first_token + row + 64u, tokens - 1u);
    var mean = vec2<f32>();
    var inverse = vec2<f32>(1.0);
    if (norm_layer) {
        var sum = vec2<f32>();
        for (var c = part * 4u; c < columns; c += 16u) {
            sum += vec2<f32>(dot(x_four(token0, c), vec4<f32>(1.0)), dot(x_four(token1, c), vec4<f32>(1.0)));
        }
        of_token[row][part] = sum.x;
        of_token[row + 64u][part] = sum.y;
        workgroupBarrier();
        mean = vec2<f32>(sum_of_token(row), sum_of_token(row + 64u)) / f32(columns);
        workgroupBarrier();
        sum = vec2<f32>();
        for (var c = part * 4u; c < columns; c += 16u) {
            for (var d = c; d < min(c + 4u, columns); d++) {
                let v0 = x[(token0 * columns + d) / 4u][(token0 * columns + d) % 4u] - mean.x;
                let v1 = x[(token1 * columns + d) / 4u][(token1 * columns + d) % 4u] - mean.y;
                sum += vec2<f32>(v0 * v0, v1 * v1);
            }
        }
        of_token[row][part] = sum.x;
        of_token[row + 64u][part] = sum.y;
        workgroupBarrier();
        inverse = inverseSqrt(vec2<f32>(sum_of_token(row), sum_of_token(row + 64u)) / f32(columns) + eps);
    }
    var squares = vec2<f32>();
    var a0 = vec4<f32>();
    var a1 = vec4<f32>();
    var a2 = vec4<f32>();
    var a3 = vec4<f32>();
    var b0 = vec4<f32>();
    var b1 = vec4<f32>();
    var b2 = vec4<f32>();
    var b3 = vec4<f32>();
    for (var c = 0u; c < blocks * 32u; c += 16u) {
        let column = c + part * 4u;
        let w = weight_four(min(first_row + row, weight_some - 1u), column);
        var x0 = x_four(token0, column);
        var x1 = x_four(token1, column);
        if (norm_rms) {
            squares += vec2<f32>(dot(x0, x0), dot(x1, x1));
        }
        x0 = normed(x0, column, mean.x, inverse.x);
        x1 = normed(x1, column, mean.y, inverse.y);
        workgroupBarrier();
        for (var d = 0u; d < 4u; d++) {
            let k = part * 4u + d;
            right[k * 17u + row / 4u][row % 4u] = w[d];
            left[k * 33u + row / 4u][row % 4u] = x0[d];
            left[k * 33u + 16u + row / 4u][row % 4u] = x1[d];
        }
        workgroupBarrier();
        for (var k = 0u; k < 16u; k++) {
            let r = right[k * 17u + j];
            let l = left[k * 33u + i];
            let m = left[k * 33u + 16u + i];
            a0 = fma(vec4<f32>(l.x), r, a0);
            a1 = fma(vec4<f32>(l.y), r, a1);
            a2 = fma(vec4<f32>(l.z), r, a2);
            a3 = fma(vec4<f32>(l.w), r, a3);
            b0 = fma(vec4<f32>(m.x), r, b0);
            b1 = fma(vec4<f32>(m.y), r, b1);
            b2 = fma(vec4<f32>(m.z), r, b2);
            b3 = fma(vec4<f32>(m.w), r, b3);
        }
    }
    workgroupBarrier();
    of_token[row][part] = squares.x;
    of_token[row + 64u][part] = squares.y;
    workgroupBarrier();
    finish(first_token, 4u * i, first_row + 4u * j, tokens, a0);
    finish(first_token, 4u * i + 1u, first_row + 4u * j, tokens, a1);
    finish(first_token, 4u * i + 2u, first_row + 4u * j, tokens, a2);
    finish(first_token, 4u * i + 3u, first_row + 4u * j, tokens, a3);
    finish(first_token, 4u * i + 64u, first_row + 4u * j, tokens, b0);
    finish(first_token, 4u * i + 65u, first_row + 4u * j, tokens, b1);
    finish(first_token, 4u * i + 66u, first_row + 4u * j, tokens, b2);
    finish(first_token, 4u * i + 67u, first_row + 4u * j, tokens, b3);
}

// Four products of a token of the tile.
fn finish(first_token: u32, token: u32, row: u32, tokens: u32, products: vec4<f32>) {
    if (first_token + token < tokens && row < weight_some) {
        put(first_token + token, row, min(4u, weight_some - row), products * of_squares(sum_of_token(token)));
    }
}
