// Heads that are pairs of queries and a gate, parted into all queries and all gates.

// workgroups: ceil(out0_columns / 64), x_count

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> out0: array<f32>;
@group(0) @binding(2) var<storage, read_write> out1: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let column = group.x * 64u + thread;
    if (column >= out0_columns) {
        return;
    }
    let at = group.y * out0_columns + column;
    let source = group.y * x_columns + column / head_dim * 2u * head_dim + column % head_dim;
    out0[at] = x[source];
    out1[at] = x[source + head_dim];
}
