// Rows shifted to zero mean and scaled to unit variance, then weight and bias: one workgroup a row.

// workgroups: x_count

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> weight: array<f32>;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

var<workgroup> parts: array<f32, 256>;

// The sum over all threads of the workgroup, for each of them.
fn total(value: f32, thread: u32) -> f32 {
    workgroupBarrier();
    parts[thread] = value;
    for (var half = 128u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (thread < half) {
            parts[thread] += parts[thread + half];
        }
    }
    workgroupBarrier();
    return parts[0];
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let first = group.x * x_columns;
    var sum = 0.0;
    for (var i = thread; i < x_columns; i += 256u) {
        sum += x[first + i];
    }
    let mean = total(sum, thread) / f32(x_columns);
    var squares = 0.0;
    for (var i = thread; i < x_columns; i += 256u) {
        let value = x[first + i] - mean;
        squares += value * value;
    }
    let factor = inverseSqrt(total(squares, thread) / f32(x_columns) + eps);
    for (var i = thread; i < x_columns; i += 256u) {
        out[first + i] = (x[first + i] - mean) * factor * weight[i] + bias[i];
    }
}
