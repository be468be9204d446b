// The gated delta rule, each sequence going on from its slot (gated_delta: from zeros). Columns of a state do not meet:
// a workgroup keeps 32 of one head of one sequence, a thread a quarter of the rows of one column, in registers, and
// tokens follow one another. Keys, queries, values and gates of eight tokens at a time lie in workgroup memory.

// workgroups: ceil(out_columns / value_heads / 32), value_heads, step_S

@group(0) @binding(0) var<storage, read> inputs: array<u32>;
@group(0) @binding(1) var<storage, read_write> state: array<f32>;
@group(0) @binding(2) var<storage, read> qkv: array<f32>;
@group(0) @binding(3) var<storage, read> a: array<f32>;
@group(0) @binding(4) var<storage, read> b: array<f32>;
@group(0) @binding(5) var<storage, read> a_log: array<f32>;
@group(0) @binding(6) var<storage, read> dt_bias: array<f32>;
@group(0) @binding(7) var<storage, read_write> out: array<f32>;

const dk = select(key_dim, qkv_columns / (2u * key_heads + value_heads), key_dim == 0u);
const dv = (qkv_columns - 2u * key_heads * dk) / value_heads;
const QUARTERS = 4u;
const ROWS = (dk + QUARTERS - 1u) / QUARTERS;
const COLUMNS = 32u;
const TOKENS = 8u;
const LANES = 16u;  // threads that fetch one token

var<workgroup> query: array<array<f32, QUARTERS * ROWS>, TOKENS>;
var<workgroup> key: array<array<f32, QUARTERS * ROWS>, TOKENS>;
var<workgroup> value: array<array<f32, COLUMNS>, TOKENS>;
var<workgroup> gates: array<vec2<f32>, TOKENS>;  // decay and beta
var<workgroup> squares: array<array<vec2<f32>, LANES>, TOKENS>;
var<workgroup> known: array<array<f32, COLUMNS>, QUARTERS>;
var<workgroup> answers: array<array<f32, COLUMNS>, QUARTERS>;

fn is_finite(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7f800000u) != 0x7f800000u;
}

fn is_number(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7fffffffu) <= 0x7f800000u;
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

// Bring what eight tokens need into workgroup memory, queries and keys of length 1.
fn fetch(first: u32, end: u32, head: u32, first_column: u32, thread: u32) {
    let place = thread / LANES;
    let lane = thread % LANES;
    let token = min(first + place, end - 1u);
    let key_head = select(head / (value_heads / key_heads), head % key_heads, tiled);
    let at = token * qkv_columns + key_head * dk;
    var sum = vec2<f32>();
    for (var i = lane; i < dk; i += LANES) {
        let both = vec2<f32>(qkv[at + i], qkv[at + key_heads * dk + i]);
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
            query[place][i] = qkv[at + i] * scale.x;
        }
        if (i < dk && scale.y > 0.0) {
            key[place][i] = qkv[at + key_heads * dk + i] * scale.y;
        }
    }
    let values = token * qkv_columns + 2u * key_heads * dk + head * dv;
    for (var c = lane; c < COLUMNS; c += LANES) {
        value[place][c] = qkv[values + min(first_column + c, dv - 1u)];
    }
    workgroupBarrier();
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let c = thread % COLUMNS;
    let column = group.x * COLUMNS + c;
    let quarter = thread / COLUMNS;
    let first_row = quarter * ROWS;
    let head = group.y;
    let begin = inputs[step_offsets + group.z];
    let end = inputs[step_offsets + group.z + 1u];
    var own: array<f32, ROWS>;
    if (has_state && column < dv && begin < end && inputs[step_positions + begin] > 0u) {
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
            if (has_state && column < dv) {
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
