// The experts of every token: one workgroup a token takes the largest logit that is left, top_k times.

// workgroups: logits_count

@group(0) @binding(0) var<storage, read> logits: array<f32>;
@group(0) @binding(1) var<storage, read_write> out0: array<u32>;
@group(0) @binding(2) var<storage, read_write> out1: array<f32>;

const experts = logits_columns;

var<workgroup> left: array<f32, experts>;
var<workgroup> best: array<u32, 64>;
var<workgroup> broken: atomic<u32>;
var<workgroup> weights: array<f32, top_k>;

// The better of two experts: of the larger logit, or the lower id; `experts` is none.
fn better(a: u32, b: u32) -> u32 {
    if (a == experts || b == experts) {
        return min(a, b);
    }
    if (left[a] == left[b]) {
        return min(a, b);
    }
    return select(b, a, left[a] > left[b]);
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    if (thread == 0u) {
        atomicStore(&broken, 0u);
    }
    workgroupBarrier();
    for (var e = thread; e < experts; e += 64u) {
        let value = logits[group.x * experts + e];
        left[e] = value;
        if ((bitcast<u32>(value) & 0x7f800000u) == 0x7f800000u) {
            atomicOr(&broken, 1u);
        }
    }
    workgroupBarrier();
    let sound = atomicLoad(&broken) == 0u;
    var taken: array<u32, (experts + 2047u) / 2048u>;  // bits of this thread's experts that were chosen
    var largest = 0.0;
    var sum = 0.0;
    for (var place = 0u; place < top_k; place++) {
        var mine = experts;
        for (var e = thread; e < experts; e += 64u) {
            if (((taken[e / 2048u] >> ((e / 64u) % 32u)) & 1u) == 0u) {
                mine = better(mine, e);
            }
        }
        workgroupBarrier();
        best[thread] = mine;
        for (var half = 32u; half > 0u; half /= 2u) {
            workgroupBarrier();
            if (thread < half) {
                best[thread] = better(best[thread], best[thread + half]);
            }
        }
        workgroupBarrier();
        let chosen = best[0];
        if (chosen % 64u == thread) {
            taken[chosen / 2048u] |= 1u << ((chosen / 64u) % 32u);
        }
        if (place == 0u) {
            largest = left[chosen];
        }
        let weight = exp(left[chosen] - largest);
        sum += weight;
        if (thread == 0u) {
            out0[group.x * top_k + place] = select(place, chosen, sound);
            weights[place] = weight;
        }
    }
    workgroupBarrier();
    for (var place = thread; place < top_k; place += 64u) {
        var weight = 0.0;
        if (sound) {
            weight = weights[place] / sum;
        }
        out1[group.x * top_k + place] = weight;
    }
}
