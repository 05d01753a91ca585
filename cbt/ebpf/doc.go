// Package ebpf records what is written to a block device that is in use: it
// attaches programs to the kernel's block layer. The device needs no module, no
// remount and no pause.
//
// Read it in this order:
//
//   - [Probe]: what this kernel can do;
//   - [Start] and [Open]: a [Tracker], which implements cbt.Tracker and
//     cbt.Sealer, and outlives the process that started it;
//   - view.go: the record of a tracked volume, shared with the programs;
//   - planes.go: the bitmap and how bits are taken from it;
//   - session.go: the marks at the end of writes, and the race they end;
//   - trust.go: when the tracker stops to vouch;
//   - pins.go: what lies in bpffs, and what a crash leaves there;
//   - bpf/: the programs.
//
// A write is marked when it is queued, before it can change the device. The
// marks are in kernel memory, held by pins in bpffs: the death of any process
// loses none of them, a reboot loses all. Bits are moved from the plane that
// the programs write to a plane that user space owns, and leave that one when
// they are proven (L2).
//
// What does not pass through the block layer as a write is not seen: a mapping
// of a DAX device, a command of SG_IO (it is counted), a write to the file
// behind a loop device. See docs/KERNELS.md.
package ebpf
