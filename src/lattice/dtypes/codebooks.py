"""Codebook formats, read only: iq1_s, iq1_m, iq2_xxs, iq2_xs, iq2_s, iq3_xxs, iq3_s. Super-blocks of 256
values.

A code picks a point of a fixed grid, 8 values at once (iq3: 4), beside signs and scales:

    iq2, iq3:  x = scale * s[group] * point[i] * sign[i]          iq1:  x = scale * s[group] * (point[i] +
    shift[group])

The grids are part of the formats (ggml's `iq*_grid` tables, found by search there, so no rule generates
them). Each is a set of points out of LEVELS ** width in ascending order, value 0 being the lowest digit; so a
grid is kept as one bit per possible point, deflated, in base 85: 2.7 KB of text for all. Source of formats:
ggml's `dequantize_row_iq*`.
"""

from __future__ import annotations

import base64
import functools
import zlib

import numpy as np

from lattice.dtypes._dtype import declare_blocks
from lattice.dtypes._planes import layout, planes, view

VALUES = 256

IQ1_S_LAYOUT = layout(("scale", "<f2"), ("codes", "u1", 32), ("high", "<u2", 8))
IQ1_M_LAYOUT = layout(("codes", "u1", 32), ("high", "u1", 16), ("scales", "<u2", 4))
IQ2_XXS_LAYOUT = layout(("scale", "<f2"), ("groups", [("codes", "u1", 4), ("signs", "<u4")], 8))
IQ2_XS_LAYOUT = layout(("scale", "<f2"), ("codes", "<u2", 32), ("scales", "u1", 8))
IQ2_S_LAYOUT = layout(
    ("scale", "<f2"), ("codes", "u1", 32), ("signs", "u1", 32), ("high", "u1", 8), ("scales", "u1", 8)
)
IQ3_XXS_LAYOUT = layout(("scale", "<f2"), ("codes", "u1", 64), ("signs", "<u4", 8))
IQ3_S_LAYOUT = layout(
    ("scale", "<f2"), ("codes", "u1", 64), ("high", "u1", 8), ("signs", "u1", 32), ("scales", "u1", 4)
)

_IQ2_LEVELS = (8, 25, 43)
LEVELS = {
    "iq1": (-1, 0, 1),
    "iq2_xxs": _IQ2_LEVELS,
    "iq2_xs": _IQ2_LEVELS,
    "iq2_s": _IQ2_LEVELS,
    "iq3_xxs": (4, 12, 20, 28, 36, 44, 52, 62),
    "iq3_s": (1, 3, 5, 7, 9, 11, 13, 15),
}
_MEMBERS = {
    "iq1": (
        b"c-k#eO>0z16uqyx#k83y_qA0qE*kA7fk#%6iL;cd<W&+S(JE7AEBc6nlGQ*KX*Z#@1057+gows$6w-"
        b"}Cbfte_m;o2UY|_#*VZa~*x^U%6T=`Mm&aUdhx#ygF&eKOplgaU0)cQ?aLaWb`!=%}lC@i-"
        b"gZEZ5CFdhU_><`D{U2pdIZAiiRBZ^Tjpc--1mjt-&r-"
        b"O_l7bZy)3*%3zRUeyRXfJ~s5?<5PM<UK4aB<I3L}>n{hnc{+>K$G67mn>zvR$=UOtZPa7LUsmQWQ2bN)ou!Kj_yfb~LQyR=nku"
        b")`P+=g=?+GNRyF#AueD^;Yg67k)HG=(os>Uh!rG~(gRxZza2HhyPsM)=qh9|ehXUldkU;_wA!C+2Fv`rcq!34!0Fqz%0;&7#Xe"
        b"AmBu`}t6ci#>+3WlSwzITy{$0C$RU8lhlWkibbyz6nxOL=l|4%yAAJ4G^LV^S*V!(*CwdNU%)Qrh$#q9cyW*tq|@QQ}j896#XT"
        b"v`6q5lhc&*LLPVeEGcad$xT4&D*b^FV9bJ+^}ih*A`2jX2rIue$9q9{)`S!jt!g=X1D{vGEMnukjj}Wcvs!oqc~_d61@aP1V3B"
        b"vcjc9uWpgt6=l#-;vm1GpU-HX*>(|GJ!F2C{R9{8qA7trFiLFJ0VD+S2Ny_0+jiaiUvPbU!Gt<44HyL$nQ%A{iI)xZW(;0iU=z"
        b"Roe)YSg8LFF!L&Ei&Q)FngSxd==b)ez8IIEAq?gCPR1z1`cE#svx$dBcgrdMr~`+vY{G*{j)LdH7J(;|V_S3+rEqj0{aUGZ~5`"
        b"z3=#nUT2ypkIbf^7Qd%#dKF#22&cWI$B=(k{y*i-P-%7a6aqltG8tC11XWn$8wuQe)#`Rb$ezM@h+=MX6ehv4>@KW-1MD8)wE"
    ),
    "iq2_xxs": (
        b"c-nPRORj`4470MbdWwiuj~R8vF<3s$DPNNQV8mEdDvh1mfzMz4@MsNM4-"
        b"kL~Dg?0u3Z<Q}s#5&i%a^YL7=qILyw)W4Cso8iRnlpCLd`c4Du;C<RlH?aajd+e<FY7)k8>WSTt@47wX1jPqB41q=2e+&9hy;#"
        b"r#nzQ(d`wV2I-N(E<X_7hks$x7)Do8!;TEvZcdv+$;Bf*s-;99+U-"
        b"&7)=?KnsoS&M%ZZjW8ztGaG<oin^)>q~!#84@<5Q?C;cAe-"
        b"jqH$lW6s<jvF<nQc*Z$~yKl@H%B$)D{-`Y{-_v~Aze0c0{sHUUCpi"
    ),
    "iq2_xs": (
        b"c-mc2ORj`4470L|dWwh@;*?QWh*MOoP)|Aew9xme83;|{*iP^L>UVu^J$f&9<)%0;rYcZH@zkTcz*1-"
        b"`0#F4vd)cqIa~EY0S(m36us~sl4e+uqnt+xnD5p1ifdk&k2^cqyDKl&hVwLuN#<u{Y#82-"
        b"D2r2AS*#~B;6>b%zZ?$An2Qav5OyP;?IjC1*OUa>YNXBOJs!l*N%2M9ag1pZ#qbS<pDODX)Ys@FiGwcn?g7z}ZUJ85J?WuXe7)"
        b"kq!xj_MC=sehbo`f6hw91-EjVApg;SBK(#S-"
        b"ctqy5bslAAu_xaBeODLPcR%XL4jpOCvsj1dP@iIwgyVBr<uBI!nKMuUZZ1qQNNP<bV}FGN4KvRv{ky>(2~*Gt;x6q$P={6Cb#@"
        b"3Dfxx_wWh`vWo0U*P"
    ),
    "iq2_s": (
        b"c-n1JOKt@r42!agI0c#&;*=39#3>LflvCCTO#7-"
        b"9jpk=;Y=fB%TefG%OIlXuE_Fz<Ougf=%xu>+l3Bq8hyjg~lMrunmZ<Wy`~YGiEi#3On5vBd<vmKZSi%aW(psKWGWlAsphF>8rU"
        b"C+;ZDfa(=s@_F#i0yss$-8fvv#Vf@jNV{kuiVLgA~66J1A2@4RVJKUxH}IH-"
        b"$JpaZ^g})pmKjjd>lmojtPqGOJ!xqXVV(I)s3f1HneH&<4|id_Zsqi~d9|fZw$~1nHWO$bgs-"
        b"@JBFei6qb36Asxo<#s4;BRhd~d<sfnbhG0<$t^)oE$@gK%zO1xyELVB%s1k`FAKZeJ@WjCtPZ6s4%XC=!ChZ<C{I5t%jB|RQ$q"
        b"0^0H^%ZVVCdNfJ9HPfzZdmWSrg_I({bPgptf%^rJMcpz`hTS7u<>s9rVvW-WSa`T|j+oGk"
    ),
    "iq3_xxs": (
        b"c-l=-K?=h#3{ye}VW$qZd!FLL9+1HvWO^EVh1sdkoaHp#R7#szmgHo6m{j1}>~2z^o7e*jro|>W6f;suxGq5ThwwrH-"
        b"tdy3S=*8VCKknJ;ww~xN=C-Lt2kc1f`n?I#<sN&{qc;xi`rsIog^>xCi>0vO72GEj+P?`#G30*;dkafo0(MD70~26E5oy)Fh-P"
        b"S2J_iYxE!Gh>5A3e2Aw8l#Lz*UZ2xyz&!sE!Xy7=t?heopubnm$;UMyR4j1Wf!f;*xLWT6+u!rw*Hy!tqyDZ17JdzPtf@!~_J7"
        b"yrh&WtZi"
    ),
    "iq3_s": (
        b"c-k#dK}rKb5Ud?m7(7iN59ovqtiR~U2pdlmS^v`sIn3TR;sZue5Z@6$Amj-`@D=vV+J}a&>aMEU{rNq)_mDQ1)6rXa`g-zl6)-"
        b"xV9&D<-"
        b"%sLtw(&E+K!8jAZAn=FIh`{BX?s3iZ9eL!0y{saQwa{i<M_rV8i?Gza!ZNf5Tx$=B>&%}&x2aFnb2>I1DZfG3@eJJ?w}Hf9jj>"
        b"U<u}qaX$V(Q{%bJZi0qBwX8+P2=0D&xpG^*kpx3aC_+^woo1gDy;frCMb5s>PfCelExhl@Z5=M_J&lZwQK<TIaOt1Nd_t_Z4Nk"
        b"qr(Irw~QLK*sjOloy2EUU#sN3YKfvLC9pG+yhGG#kO><KBF1{I~{B$E!8AqIlE}-"
        b"BNQAl`R33C|JNFjj93D(#a!oZudm_a(c~OHe<Yb)Y4R?AVbTWv01QA~hX"
    ),
}
# iq1 moves a whole group of points by an eighth, up or down.
_SHIFT = np.float32(0.125)


@functools.cache
def grid(name: str) -> np.ndarray:
    """Return the points of a grid, (points, width) float32."""
    levels = np.array(LEVELS[name], np.float32)
    width = 4 if name.startswith("iq3") else 8
    packed = np.frombuffer(zlib.decompress(base64.b85decode(_MEMBERS[name])), np.uint8)
    members = np.flatnonzero(np.unpackbits(packed, count=len(levels) ** width))
    digits = members[:, None] // len(levels) ** np.arange(width) % len(levels)
    return levels[digits]


def _f32(field: np.ndarray) -> np.ndarray:
    return field.astype(np.float32)[:, None]


def _signs(bits: np.ndarray) -> np.ndarray:
    """Return +1 or -1 for each bit of bytes (n, m), lowest first: (n, m * 8) float32."""
    return 1 - 2 * planes(bits, 1, 1).astype(np.float32)


def _seven_signs(codes: np.ndarray) -> np.ndarray:
    """Return the sign bytes of 7-bit codes: the eighth sign makes the number of minus signs even."""
    parity = codes ^ (codes >> 4)
    parity ^= parity >> 2
    parity ^= parity >> 1
    return (codes | ((parity & 1) << 7)).astype(np.uint8)


def _four_codes(words: np.ndarray) -> np.ndarray:
    """Return the sign bytes (n, m * 4) of u32 words (n, m) of four 7-bit codes (and a 4-bit scale)."""
    codes = (words[:, :, None] >> np.array([0, 7, 14, 21], np.uint32)) & 127
    return _seven_signs(codes.reshape(len(words), -1))


def _signed(scale: np.ndarray, points: np.ndarray, sign_bytes: np.ndarray, out: np.ndarray) -> None:
    """Write scale (n, groups) times points times signs, each n * 256 values."""
    grouped = out.reshape(*scale.shape, -1)
    np.multiply(scale[:, :, None], points.reshape(grouped.shape), out=grouped)
    out *= _signs(sign_bytes)


def _unpack_iq2_xxs(blocks: np.ndarray, out: np.ndarray) -> None:
    block = view(blocks, IQ2_XXS_LAYOUT)
    words = block["groups"]["signs"]
    scale = _f32(block["scale"]) * (np.float32(0.5) + (words >> 28).astype(np.float32)) * np.float32(0.25)
    _signed(scale, grid("iq2_xxs")[block["groups"]["codes"]], _four_codes(words), out)


def _unpack_iq2_xs(blocks: np.ndarray, out: np.ndarray) -> None:
    block = view(blocks, IQ2_XS_LAYOUT)
    scale = _f32(block["scale"]) * (np.float32(0.5) + planes(block["scales"], 1, 4)) * np.float32(0.25)
    _signed(scale, grid("iq2_xs")[block["codes"] & 511], _seven_signs(block["codes"] >> 9), out)


def _unpack_iq2_s(blocks: np.ndarray, out: np.ndarray) -> None:
    block = view(blocks, IQ2_S_LAYOUT)
    scale = _f32(block["scale"]) * (np.float32(0.5) + planes(block["scales"], 1, 4)) * np.float32(0.25)
    codes = block["codes"].astype(np.uint16) | (planes(block["high"], 1, 2).astype(np.uint16) << 8)
    _signed(scale, grid("iq2_s")[codes], block["signs"], out)


def _unpack_iq3_xxs(blocks: np.ndarray, out: np.ndarray) -> None:
    block = view(blocks, IQ3_XXS_LAYOUT)
    words = block["signs"]
    scale = _f32(block["scale"]) * (np.float32(0.5) + (words >> 28).astype(np.float32)) * np.float32(0.5)
    _signed(scale, grid("iq3_xxs")[block["codes"]], _four_codes(words), out)


def _unpack_iq3_s(blocks: np.ndarray, out: np.ndarray) -> None:
    block = view(blocks, IQ3_S_LAYOUT)
    scale = _f32(block["scale"]) * (1 + 2 * planes(block["scales"], 1, 4))
    codes = block["codes"].astype(np.uint16) | (planes(block["high"], 1, 1).astype(np.uint16) << 8)
    _signed(scale, grid("iq3_s")[codes], block["signs"], out)


def _shifted(scale: np.ndarray, codes: np.ndarray, minus: np.ndarray, out: np.ndarray) -> None:
    """Write scale (n, groups) times the iq1 points of codes (n, 32), each moved by minus or plus `_SHIFT`."""
    n = len(codes)
    points = grid("iq1")[codes]  # (n, 32, 8)
    shift = np.where(minus, -_SHIFT, _SHIFT)
    points = points + np.repeat(shift, codes.shape[1] // shift.shape[1], axis=1)[:, :, None]
    grouped = out.reshape(n, scale.shape[1], -1)
    np.multiply(scale[:, :, None], points.reshape(grouped.shape), out=grouped)


def _unpack_iq1_s(blocks: np.ndarray, out: np.ndarray) -> None:
    block = view(blocks, IQ1_S_LAYOUT)
    high = block["high"]
    top = (high[:, :, None] >> np.array([0, 3, 6, 9], np.uint16)) & 7
    codes = block["codes"].astype(np.uint16) | (top.reshape(len(high), -1) << 8)
    _shifted(_f32(block["scale"]) * (2 * ((high >> 12) & 7) + 1), codes, (high & 0x8000) != 0, out)


def _unpack_iq1_m(blocks: np.ndarray, out: np.ndarray) -> None:
    block = view(blocks, IQ1_M_LAYOUT)
    words, high = block["scales"], planes(block["high"], 1, 4)
    # The f16 scale of the block lies in the top 4 bits of the four words, lowest first.
    nibbles = (words >> 12) << np.array([0, 4, 8, 12], np.uint16)
    scale = np.bitwise_or.reduce(nibbles, axis=1).view(np.float16)
    s = ((words[:, :, None] >> np.array([0, 3, 6, 9], np.uint16)) & 7).reshape(len(words), -1)
    codes = block["codes"].astype(np.uint16) | ((high & 7).astype(np.uint16) << 8)
    _shifted(_f32(scale) * (2 * s + 1), codes, (high & 8) != 0, out)


IQ1_S = declare_blocks("iq1_s", VALUES, IQ1_S_LAYOUT, _unpack_iq1_s)
IQ1_M = declare_blocks("iq1_m", VALUES, IQ1_M_LAYOUT, _unpack_iq1_m)
IQ2_XXS = declare_blocks("iq2_xxs", VALUES, IQ2_XXS_LAYOUT, _unpack_iq2_xxs)
IQ2_XS = declare_blocks("iq2_xs", VALUES, IQ2_XS_LAYOUT, _unpack_iq2_xs)
IQ2_S = declare_blocks("iq2_s", VALUES, IQ2_S_LAYOUT, _unpack_iq2_s)
IQ3_XXS = declare_blocks("iq3_xxs", VALUES, IQ3_XXS_LAYOUT, _unpack_iq3_xxs)
IQ3_S = declare_blocks("iq3_s", VALUES, IQ3_S_LAYOUT, _unpack_iq3_s)
