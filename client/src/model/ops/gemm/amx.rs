//! The tile registers of Intel's AMX: 16 x 32 bf16 values times 32 x 16, summed in f32. The compiler has no stable
//! intrinsics for them, so this is assembly; [`products`] checks every extent, so every caller is safe.
#![expect(unsafe_code, reason = "assembly and a system call; `products` checks what they reach")]

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::sync::LazyLock;

use super::tiles::{Block, SIDE, Tile};

/// Whether processor and system have the registers. Asks the system for their use, once for all threads.
pub(super) fn is_available() -> bool {
    static AVAILABLE: LazyLock<bool> = LazyLock::new(|| {
        // Intel's manual, volume 2, CPUID: leaf 7 tells AMX-BF16 in bit 22 of EDX, AMX-TILE in bit 24.
        const WANTED: u32 = 1 << 22 | 1 << 24;
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_long = 18;
        let features = __cpuid_count(7, 0).edx;
        // SAFETY: the call takes two numbers and no pointer; it is refused where the kernel does not know it.
        features & WANTED == WANTED
            && unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) } == 0
    });
    *AVAILABLE
}

/// The shapes of the tile registers, as the processor reads them.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// All eight registers whole.
static SHAPES: Shapes = Shapes {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Two strips of the left operand times every pair of strips of the right one; calls `take` with the number of the pair and
/// the product. A strip is `left.len() / 2` tiles, one after the other along the depth; sums run in their order.
///
/// # Panics
/// When the operands are no whole pairs of strips, or the processor has no tiles: a mistake in this crate.
pub(super) fn products(left: &[Tile], right: &[Tile], mut take: impl FnMut(usize, &Block)) {
    let depth = left.len() / 2;
    assert!(depth > 0 && left.len() == 2 * depth && right.len().is_multiple_of(2 * depth), "unpaired strips");
    assert!(is_available(), "no tile registers");
    let mut block: Block = [[0.0; 2 * SIDE]; 2 * SIDE];
    for (number, right) in right.chunks_exact(2 * depth).enumerate() {
        // SAFETY: the registers are there (asserted) and shaped by the first instruction. Each of the four pointers walks
        // over `depth` tiles of 1024 bytes inside its slice, whose length is asserted; rows of a tile are 64 bytes. The
        // stores fill the 32 rows of 128 bytes of `block`. The registers are released before the block ends.
        unsafe {
            asm!(
                "ldtilecfg [{shapes}]",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "tileloadd tmm4, [{upper} + {row}]",
                "tileloadd tmm6, [{first} + {row}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{second} + {row}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{lower} + {row}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {upper}, 1024",
                "add {lower}, 1024",
                "add {first}, 1024",
                "add {second}, 1024",
                "dec {depth}",
                "jnz 2b",
                "tilestored [{block} + {wide}], tmm0",
                "tilestored [{block} + {wide} + 64], tmm1",
                "tilestored [{block} + {wide} + 2048], tmm2",
                "tilestored [{block} + {wide} + 2112], tmm3",
                "tilerelease",
                shapes = in(reg) &raw const SHAPES,
                upper = inout(reg) left.as_ptr() => _,
                lower = inout(reg) left[depth..].as_ptr() => _,
                first = inout(reg) right.as_ptr() => _,
                second = inout(reg) right[depth..].as_ptr() => _,
                depth = inout(reg) depth => _,
                block = in(reg) block.as_mut_ptr(),
                row = in(reg) 64usize,
                wide = in(reg) 128usize,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
        take(number, &block);
    }
}
