#include "textflag.h"

// One sum: words of the message (M) and the key block at OFF, added, multiplied
// in pairs, accumulated.
#define SUM512(OFF, ACC, A, B) \
	VPADDD OFF(DX), Z8, A  \
	VPSRLQ $32, A, B       \
	VPMULUDQ A, B, A       \
	VPADDQ A, ACC, ACC

// Adds up the eight lanes of a sum and stores it.
#define FOLD512(ACC, ACCY, ACCX, OFF) \
	VEXTRACTI64X4 $1, ACC, Y9   \
	VPADDQ Y9, ACCY, ACCY       \
	VEXTRACTI128 $1, ACCY, X9   \
	VPADDQ X9, ACCX, ACCX       \
	VPSRLDQ $8, ACCX, X9        \
	VPADDQ X9, ACCX, ACCX       \
	VMOVQ ACCX, OFF(DI)

// func nhAVX512(out *[4]uint64, msg, key *byte, blocks int)
TEXT ·nhAVX512(SB), NOSPLIT, $0-32
	MOVQ out+0(FP), DI
	MOVQ msg+8(FP), SI
	MOVQ key+16(FP), DX
	MOVQ blocks+24(FP), CX
	VPXORQ Z0, Z0, Z0
	VPXORQ Z1, Z1, Z1
	VPXORQ Z2, Z2, Z2
	VPXORQ Z3, Z3, Z3

loop512:
	VMOVDQU64 (SI), Z8
	SUM512(0, Z0, Z9, Z10)
	SUM512(64, Z1, Z11, Z12)
	SUM512(128, Z2, Z13, Z14)
	SUM512(192, Z3, Z15, Z16)
	ADDQ $64, SI
	ADDQ $64, DX
	DECQ CX
	JNZ  loop512

	FOLD512(Z0, Y0, X0, 0)
	FOLD512(Z1, Y1, X1, 8)
	FOLD512(Z2, Y2, X2, 16)
	FOLD512(Z3, Y3, X3, 24)
	VZEROUPPER
	RET

#define SUM256(M, OFF, ACC, A, B) \
	VPADDD OFF(DX), M, A \
	VPSRLQ $32, A, B     \
	VPMULUDQ A, B, A     \
	VPADDQ A, ACC, ACC

#define FOLD256(ACC, ACCX, OFF) \
	VEXTRACTI128 $1, ACC, X9 \
	VPADDQ X9, ACCX, ACCX    \
	VPSRLDQ $8, ACCX, X9     \
	VPADDQ X9, ACCX, ACCX    \
	VMOVQ ACCX, OFF(DI)

// func nhAVX2(out *[4]uint64, msg, key *byte, blocks int)
TEXT ·nhAVX2(SB), NOSPLIT, $0-32
	MOVQ out+0(FP), DI
	MOVQ msg+8(FP), SI
	MOVQ key+16(FP), DX
	MOVQ blocks+24(FP), CX
	VPXOR Y0, Y0, Y0
	VPXOR Y1, Y1, Y1
	VPXOR Y2, Y2, Y2
	VPXOR Y3, Y3, Y3

loop256:
	VMOVDQU (SI), Y8
	VMOVDQU 32(SI), Y7
	SUM256(Y8, 0, Y0, Y9, Y10)
	SUM256(Y8, 64, Y1, Y11, Y12)
	SUM256(Y8, 128, Y2, Y13, Y14)
	SUM256(Y8, 192, Y3, Y15, Y6)
	SUM256(Y7, 32, Y0, Y9, Y10)
	SUM256(Y7, 96, Y1, Y11, Y12)
	SUM256(Y7, 160, Y2, Y13, Y14)
	SUM256(Y7, 224, Y3, Y15, Y6)
	ADDQ $64, SI
	ADDQ $64, DX
	DECQ CX
	JNZ  loop256

	FOLD256(Y0, X0, 0)
	FOLD256(Y1, X1, 8)
	FOLD256(Y2, X2, 16)
	FOLD256(Y3, X3, 24)
	VZEROUPPER
	RET
