// One token a row: edits, temperature, top-k, min-p, top-p and the draw. Nothing is sorted: in the order of falling logits
// (equal ones by id) each limit, and the draw itself, is the first token at which a sum reaches a number, and sums over
// the tokens before a given one find it, sixteen at a time: first of the logit's bits, then among equals of the id.
// `few`: 64 workgroups a row copy and edit the logits and find the largest of their share, `merge` does the rest.

// workgroups: logits_count
// workgroups few: 64, logits_count
// workgroups merge: logits_count
// scratch: logits_count * logits_stride

@group(0) @binding(0) var<storage, read> inputs: array<u32>;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read_write> scratch: array<u32>;
@group(0) @binding(3) var<storage, read_write> out: array<u32>;

const vocab = logits_columns;
const SHARES = 64u;
const STRIDE = logits_stride;  // of a row of scratch memory: logits, then the largest of each share, as key and id

// A place in the order: bits that grow with the logit, and an id.
struct Place {
    key: u32,
    id: u32,
}

var<workgroup> parts: array<f32, 256>;
var<workgroup> places: array<Place, 256>;

fn number(field: u32, row: u32) -> f32 {
    return bitcast<f32>(inputs[field + row]);
}

// Bits that grow with the number; what is no number stands last.
fn key_of(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return 0u;
    }
    if (bits == 0x80000000u) {
        return bits;  // -0 equals 0
    }
    return select(bits | 0x80000000u, ~bits, bits >= 0x80000000u);
}

fn number_of(key: u32) -> f32 {
    return bitcast<f32>(select(~key, key & 0x7fffffffu, key >= 0x80000000u));
}

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

fn before(a: Place, b: Place) -> bool {
    return a.key > b.key || (a.key == b.key && a.id <= b.id);
}

fn first_of_all(mine: Place, thread: u32) -> Place {
    workgroupBarrier();
    places[thread] = mine;
    for (var half = 128u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (thread < half && before(places[thread + half], places[thread])) {
            places[thread] = places[thread + half];
        }
    }
    workgroupBarrier();
    return places[0];
}

// What is left of the tokens, and how they are weighed.
struct Kept {
    last: Place,
    largest: f32,
    temperature: f32,
    least: f32,  // weight
}

// A logit with its edits.
fn edited(row: u32, id: u32) -> f32 {
    return bitcast<f32>(scratch[row * STRIDE + id]);
}

fn weight_of(x: f32, kept: Kept) -> f32 {
    let weight = exp(x / kept.temperature - kept.largest);
    return select(0.0, weight, weight >= kept.least);
}

// The sum of the weights of what is kept.
fn sum_of(row: u32, kept: Kept, thread: u32) -> f32 {
    var sum = 0.0;
    for (var id = thread; id < vocab; id += 256u) {
        let x = edited(row, id);
        if (before(Place(key_of(x), id), kept.last)) {
            sum += weight_of(x, kept);
        }
    }
    return total(sum, thread);
}

var<workgroup> sums: array<vec4<f32>, 256>;

fn total_four(value: vec4<f32>, thread: u32) -> vec4<f32> {
    workgroupBarrier();
    sums[thread] = value;
    for (var half = 128u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (thread < half) {
            sums[thread] += sums[thread + half];
        }
    }
    workgroupBarrier();
    return sums[0];
}

const FOUR = vec4<u32>(0u, 1u, 2u, 3u);

// How many of sixteen sums, of which each next one is not larger (by key) or not smaller (by id), are enough.
fn enough(sum: array<vec4<f32>, 4>, wanted: f32, beyond: bool, thread: u32) -> u32 {
    var count = 0u;
    for (var i = 0u; i < 4u; i++) {
        let all = total_four(sum[i], thread);
        let is = select(all >= vec4<f32>(wanted), all > vec4<f32>(wanted), beyond);
        count += u32(is.x) + u32(is.y) + u32(is.z) + u32(is.w);
    }
    return count;
}

// The first token at which the sum reaches `wanted`, or is beyond it: of weights, or of ones.
fn reach(row: u32, kept: Kept, wanted: f32, beyond: bool, by_count: bool, thread: u32) -> Place {
    var key = 0u;
    for (var shift = 28u; shift < 32u; shift -= 4u) {  // the largest key with enough at and above it
        let step = 1u << shift;
        var sum = array<vec4<f32>, 4>();
        for (var id = thread; id < vocab; id += 256u) {
            let x = edited(row, id);
            let own = Place(key_of(x), id);
            if (own.key >= key && before(own, kept.last)) {
                let weight = vec4<f32>(select(weight_of(x, kept), 1.0, by_count));
                let reached = vec4<u32>(min((own.key - key) / step, 15u));
                sum[0] += select(vec4<f32>(), weight, reached >= FOUR);
                sum[1] += select(vec4<f32>(), weight, reached >= FOUR + 4u);
                sum[2] += select(vec4<f32>(), weight, reached >= FOUR + 8u);
                sum[3] += select(vec4<f32>(), weight, reached >= FOUR + 12u);
            }
        }
        key += (max(enough(sum, wanted, beyond, thread), 1u) - 1u) * step;
    }
    var first = 0u;
    for (var shift = 20u; shift < 32u; shift -= 4u) {  // the smallest id with enough up to it
        let step = 1u << shift;
        var sum = array<vec4<f32>, 4>();
        for (var id = thread; id < vocab; id += 256u) {
            let x = edited(row, id);
            let own = Place(key_of(x), id);
            if (own.key >= key && before(own, kept.last)) {
                let weight = vec4<f32>(select(weight_of(x, kept), 1.0, by_count));
                let reached = vec4<u32>(select((max(id, first) - first) / step, 0u, own.key > key));
                sum[0] += select(vec4<f32>(), weight, reached <= FOUR);
                sum[1] += select(vec4<f32>(), weight, reached <= FOUR + 4u);
                sum[2] += select(vec4<f32>(), weight, reached <= FOUR + 8u);
                sum[3] += select(vec4<f32>(), weight, reached <= FOUR + 12u);
            }
        }
        first += (16u - max(enough(sum, wanted, beyond, thread), 1u)) * step;
    }
    return Place(key, first);
}

// The product of two words, as (low, high).
fn wide(a: u32, b: u32) -> vec2<u32> {
    let a0 = a & 0xffffu;
    let a1 = a >> 16u;
    let b0 = b & 0xffffu;
    let b1 = b >> 16u;
    let middle = a1 * b0 + ((a0 * b0) >> 16u);
    let other = a0 * b1 + (middle & 0xffffu);
    return vec2<u32>(a * b, a1 * b1 + (middle >> 16u) + (other >> 16u));
}

fn times(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let low = wide(a.x, b.x);
    return vec2<u32>(low.x, low.y + a.x * b.y + a.y * b.x);
}

fn plus(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let low = a.x + b.x;
    return vec2<u32>(low, a.y + b.y + u32(low < a.x));
}

fn mixed(z: vec2<u32>, by: u32) -> vec2<u32> {  // z ^ (z >> by), by < 32
    return z ^ vec2<u32>((z.x >> by) | (z.y << (32u - by)), z.y >> by);
}

// The number in [0, 1) of a seed and a position: the finaliser of splitmix64.
fn uniform_of(row: u32) -> f32 {
    let seed = vec2<u32>(inputs[sampling_seed + 2u * row], inputs[sampling_seed + 2u * row + 1u]);
    let count = vec2<u32>(inputs[sampling_position + row] + 1u, 0u);
    var z = plus(seed, times(vec2<u32>(0x7f4a7c15u, 0x9e3779b9u), count));
    z = times(mixed(z, 30u), vec2<u32>(0x1ce4e5b9u, 0xbf58476du));
    z = times(mixed(z, 27u), vec2<u32>(0x133111ebu, 0x94d049bbu));
    z = mixed(z, 31u);
    return f32(z.y >> 8u) / 16777216.0;
}

// Edit those logits of a row whose ids lie from `begin` to before `end`.
fn edit(row: u32, begin: u32, end: u32, thread: u32) {
    let factor = number(sampling_repetition, row);
    let presence = number(sampling_presence, row);
    let frequency = number(sampling_frequency, row);
    let last = inputs[sampling_edit_offsets + row + 1u];
    for (var e = inputs[sampling_edit_offsets + row] + thread; e < last; e += 256u) {
        let id = inputs[sampling_edit_ids + e];
        if (id >= begin && id < end) {
            let times = bitcast<i32>(inputs[sampling_edit_counts + e]);
            var x = edited(row, id) + number(sampling_edit_bias, e);
            if (times >= 0) {
                x = select(x * factor, x / factor, x > 0.0);
            }
            let less = presence * f32(times > 0) + frequency * f32(max(times, 0));
            scratch[row * STRIDE + id] = bitcast<u32>(x - less);
        }
    }
}

// The largest logit of a share of a row, edited.
fn largest_of(row: u32, begin: u32, end: u32, thread: u32) -> Place {
    for (var id = begin + thread; id < end; id += 256u) {
        scratch[row * STRIDE + id] = bitcast<u32>(logits[row * vocab + id]);
    }
    storageBarrier();
    edit(row, begin, end, thread);
    storageBarrier();
    var mine = Place(0u, vocab);
    for (var id = begin + thread; id < end; id += 256u) {
        let other = Place(key_of(edited(row, id)), id);
        if (!before(mine, other)) {
            mine = other;
        }
    }
    return first_of_all(mine, thread);
}

fn draw(row: u32, best: Place, thread: u32) {
    let temperature = number(sampling_temperature, row);
    var chosen = best;
    let finite = best.key > 0x007fffffu && best.key < 0xff800000u;
    if (temperature > 0.0 && finite) {
        let largest = number_of(best.key) / temperature;
        var kept = Kept(Place(0u, vocab), largest, temperature, 0.0);
        let top_k = inputs[sampling_top_k + row];
        if (top_k > 0u && top_k < vocab) {
            kept.last = reach(row, kept, f32(top_k), false, true, thread);
        }
        kept.least = number(sampling_min_p, row);
        var sum = sum_of(row, kept, thread);
        let top_p = number(sampling_top_p, row);
        if (top_p < 1.0) {
            kept.last = reach(row, kept, top_p * sum, false, false, thread);
            sum = sum_of(row, kept, thread);
        }
        chosen = reach(row, kept, uniform_of(row) * sum, true, false, thread);
    }
    if (thread == 0u) {
        out[row] = min(chosen.id, vocab - 1u);
    }
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    draw(group.x, largest_of(group.x, 0u, vocab, thread), thread);
}

@compute @workgroup_size(256)
fn few(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let share = (vocab + SHARES - 1u) / SHARES;
    let begin = min(group.x * share, vocab);
    let best = largest_of(group.y, begin, min(begin + share, vocab), thread);
    if (thread == 0u) {
        let at = group.y * STRIDE + vocab + 2u * group.x;
        scratch[at] = best.key;
        scratch[at + 1u] = best.id;
    }
}

@compute @workgroup_size(256)
fn merge(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    var mine = Place(0u, vocab);
    if (thread < SHARES) {
        let at = group.x * STRIDE + vocab + 2u * thread;
        mine = Place(scratch[at], scratch[at + 1u]);
    }
    draw(group.x, first_of_all(mine, thread), thread);
}
