// Each sequence as one row: its mean, its first token or its last.

// workgroups: ceil(x_columns / 64), step_S

@group(0) @binding(0) var<storage, read> inputs: array<u32>;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let column = group.x * 64u + thread;
    if (column >= x_columns) {
        return;
    }
    let begin = inputs[step_offsets + group.y];
    let end = inputs[step_offsets + group.y + 1u];
    let first = select(begin, end - 1u, mode_last);
    let last = select(end - 1u, begin, mode_cls);
    var sum = 0.0;
    for (var t = first; t <= last; t++) {
        sum += x[t * x_columns + column];
    }
    out[group.y * x_columns + column] = select(sum, sum / f32(end - begin), mode_mean);
}
