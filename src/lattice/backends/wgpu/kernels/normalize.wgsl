// Rows divided by their Euclidean length: one workgroup a row.

// workgroups: x_count

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;

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
    var squares = 0.0;
    for (var i = thread; i < x_columns; i += 256u) {
        squares += x[first + i] * x[first + i];
    }
    let length = max(sqrt(total(squares, thread)), 1e-12);
    for (var i = thread; i < x_columns; i += 256u) {
        out[first + i] = x[first + i] / length;
    }
}
