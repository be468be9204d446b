// The rows of a table that ids name, in any format; a table in parts gives each token's row in the part that has it.

// workgroups: ceil(out_columns / 64), ids_count

@group(0) @binding(0) var<storage, read> ids: array<u32>;
@group(0) @binding(1) var<storage, read> table: array<u32>;
@group(0) @binding(2) var<storage, read> table_highs: array<u32>;
@group(0) @binding(3) var<storage, read> table_scales: array<u32>;
@group(0) @binding(4) var<storage, read> table_supers: array<u32>;
@group(0) @binding(5) var<storage, read_write> out: array<f32>;

fn half_at(word: u32, at: u32) -> f32 {
    return unpack2x16float(word)[at & 1u];
}

// The value at an index of the table: of 32 in 16 bytes, value j is the low half of byte j, j + 16 its high half.
fn value(at: u32) -> f32 {
    if (table_f32) {
        return bitcast<f32>(table[at]);
    }
    if (table_f16) {
        return half_at(table[at / 2u], at);
    }
    if (table_bf16) {
        return bitcast<f32>((table[at / 2u] >> (16u * (at & 1u))) << 16u);
    }
    let b = at / 32u;
    let j = at % 32u;
    if (table_q8_0) {
        return f32(unpack4xI8(table[at / 4u])[at % 4u]) * half_at(table_scales[b / 2u], b);
    }
    var quant = (table[b * 4u + (j % 16u) / 4u] >> (8u * (j % 4u) + 4u * (j / 16u))) & 15u;
    if (table_q6_k) {
        quant |= ((table_highs[b * 2u + (j % 8u) / 4u] >> (8u * (j % 4u) + 2u * (j / 8u))) & 3u) << 4u;
        let g = at / 16u;
        let scale = unpack4xI8(table_scales[g / 4u])[g % 4u];
        return (f32(quant) - 32.0) * (f32(scale) * half_at(table_supers[at / 512u], at / 256u));
    }
    if (table_q5_0 || table_q5_1 || table_q5_k) {
        quant |= ((table_highs[b] >> j) & 1u) << 4u;
    }
    if (table_q4_0 || table_q5_0) {
        return (f32(quant) - select(8.0, 16.0, table_q5_0)) * half_at(table_scales[b / 2u], b);
    }
    if (table_q4_1 || table_q5_1) {
        let pair = unpack2x16float(table_scales[b]);
        return pair.x * f32(quant) + pair.y;
    }
    let pair = unpack2x16float(table_supers[at / 256u]);
    let word = table_scales[b / 2u] >> (16u * (b & 1u));
    return pair.x * f32(word & 255u) * f32(quant) - pair.y * f32((word >> 8u) & 255u);
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let column = group.x * 64u + thread;
    let row = ids[group.y];
    if (column < out_columns && row >= table_first && row < table_first + table_some) {
        out[group.y * out_columns + column] = value((row - table_first) * out_columns + column);
    }
}
