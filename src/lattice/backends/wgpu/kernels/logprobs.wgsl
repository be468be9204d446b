// Log softmax of a chosen token and of the largest logits: one workgroup a row takes the next largest, `top` times.

// workgroups: logits_count

@group(0) @binding(0) var<storage, read> logits: array<f32>;
@group(0) @binding(1) var<storage, read> tokens: array<u32>;
@group(0) @binding(2) var<storage, read_write> out0: array<f32>;
@group(0) @binding(3) var<storage, read_write> out1: array<u32>;
@group(0) @binding(4) var<storage, read_write> out2: array<f32>;

const vocab = logits_columns;

struct Place {
    key: u32,
    id: u32,
}

var<workgroup> parts: array<f32, 256>;
var<workgroup> places: array<Place, 256>;

// Bits that grow with the number; what is no number counts as the lowest, minus infinity.
fn key_of(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return 0x007fffffu;
    }
    if (bits == 0x80000000u) {
        return bits;  // -0 equals 0
    }
    return select(bits | 0x80000000u, ~bits, bits >= 0x80000000u);
}

fn number_of(key: u32) -> f32 {
    return bitcast<f32>(select(~key, key & 0x7fffffffu, key >= 0x80000000u));
}

// Whether a comes before b in the order: larger logits first, equal ones by id.
fn before(a: Place, b: Place) -> bool {
    return a.key > b.key || (a.key == b.key && a.id < b.id);
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

// The first token behind a place.
fn next(row: u32, last: Place, thread: u32) -> Place {
    var mine = Place(0u, vocab);
    for (var id = thread; id < vocab; id += 256u) {
        let own = Place(key_of(logits[row * vocab + id]), id);
        if (before(last, own) && before(own, mine)) {
            mine = own;
        }
    }
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

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row = group.x;
    var place = next(row, Place(0xffffffffu, 0u), thread);
    let finite = place.key > 0x007fffffu && place.key < 0xff800000u;
    let largest = number_of(place.key);
    var sum = 0.0;
    for (var id = thread; id < vocab; id += 256u) {
        let key = key_of(logits[row * vocab + id]);
        if (finite && key > 0x007fffffu) {
            sum += exp(number_of(key) - largest);
        }
    }
    let all = largest + log(total(sum, thread));
    var nothing = 0x7fc00000u;  // not a number, as a variable: constants may not be it
    nothing |= u32(finite);
    for (var i = 0u; i < top; i++) {
        if (thread == 0u) {
            out1[row * top + i] = place.id;
            out2[row * top + i] = select(bitcast<f32>(nothing), number_of(place.key) - all, finite);
        }
        if (i + 1u < top) {
            place = next(row, place, thread);
        }
    }
    if (thread == 0u) {
        let key = key_of(logits[row * vocab + tokens[row]]);
        out0[row] = select(bitcast<f32>(nothing), number_of(key) - all, finite);
    }
}
