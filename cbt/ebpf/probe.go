package ebpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
)

// Support is what is known of a feature.
type Support uint8

const (
	// Unknown: it could not be tried, see Feature.Detail.
	Unknown Support = 0
	// Yes: it was tried, and works.
	Yes Support = 1
	// No: it was tried, and does not.
	No Support = 2
)

// String returns "unknown", "yes" or "no".
func (s Support) String() string {
	switch s {
	case Yes:
		return "yes"
	case No:
		return "no"
	}
	return "unknown"
}

// Feature is one thing that the tracker asks of a kernel.
type Feature struct {
	Name     string // in words
	Support  Support
	Required bool   // tracking does not work without it
	Since    string // first Linux version that has it; "" where that is no matter of a version
	Config   string // what the kernel must be configured with; "" if nothing special
	Detail   string // why it is not known, or what the kernel said; may be ""
}

func (f Feature) unsupported(err error) error {
	return &UnsupportedError{Feature: f.Name, Since: f.Since, Config: f.Config, Err: err}
}

// Probe tries what the tracker needs of this kernel and changes nothing. dir is
// where bpffs is to be, "" for /sys/fs/bpf. Cost: some 200 ms; the last feature
// is that the kernel accepts the programs as a whole.
func Probe(dir string) []Feature {
	if dir == "" {
		dir = defaultFS
	}
	spec, err := btf.LoadKernelSpec()
	all := []Feature{answer(Feature{Name: "kernel types (BTF)", Required: true, Since: "5.4", Config: "CONFIG_DEBUG_INFO_BTF"}, err)}
	if err == nil {
		all = append(all, probeTypes(spec)...)
	}
	all = append(all,
		answer(Feature{Name: "maps in the memory of a process", Required: true, Since: "5.5"}, features.HaveMapFlag(features.BPF_F_MMAPABLE)),
		answer(Feature{Name: "bitmaps of any size in one map", Required: true, Since: "5.10"}, features.HaveMapFlag(features.BPF_F_INNER_MAP)),
		answer(Feature{Name: "atomic OR in programs", Required: true, Since: "5.12"}, tryAtomicOr()),
		answer(Feature{Name: "loops of any length (bpf_loop)", Required: true, Since: "5.17"}, features.HaveProgramHelper(ebpf.RawTracepoint, asm.FnLoop)),
		probeFS(dir), probeDiskSeq(), probeLockdown(),
		answer(Feature{Name: "the programs as a whole", Required: true, Since: "5.17"}, tryPrograms()),
	)
	return all
}

// answer says yes, no or unknown by an error.
func answer(f Feature, err error) Feature {
	switch {
	case err == nil:
		f.Support = Yes
	case errors.Is(err, ebpf.ErrNotSupported), errors.Is(err, btf.ErrNotFound), errors.Is(err, os.ErrNotExist):
		f.Support, f.Detail = No, firstLine(err)
	default:
		f.Detail = firstLine(err)
	}
	return f
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	line, _, _ = strings.Cut(line, " (MEMLOCK") // a guess for kernels before 5.11
	return line
}

// probeTypes looks for the tracepoints, with the arguments that the programs
// read, and for the members of the kernel's types.
func probeTypes(spec *btf.Spec) []Feature {
	trace := Feature{Name: "block tracepoints that give the request alone", Required: true, Since: "5.11"}
	var err error
	for name, want := range map[string]int{"block_bio_queue": 1, "block_rq_issue": 1, "block_bio_complete": 2, "block_rq_complete": 3} {
		if n, e := traceArguments(spec, name); e != nil {
			err = e
		} else if n != want {
			err = fmt.Errorf("%w: %s has %d arguments, want %d", ebpf.ErrNotSupported, name, n, want)
		}
	}
	return []Feature{
		answer(trace, err),
		answer(Feature{Name: "the partition of a bio (bio.bi_bdev)", Required: true, Since: "5.12"}, hasMember(spec, "bio", "bi_bdev")),
		answer(Feature{Name: "the disk of a request (request_queue.disk)", Required: true, Since: "5.15"}, hasMember(spec, "request_queue", "disk")),
	}
}

// traceArguments counts the arguments of a tracepoint.
func traceArguments(spec *btf.Spec, name string) (int, error) {
	var def *btf.Typedef
	if err := spec.TypeByName("btf_trace_"+name, &def); err != nil {
		return 0, fmt.Errorf("tracepoint %s: %w", name, err)
	}
	ptr, ok := def.Type.(*btf.Pointer)
	if !ok {
		return 0, fmt.Errorf("tracepoint %s is a %v", name, def.Type)
	}
	proto, ok := ptr.Target.(*btf.FuncProto)
	if !ok {
		return 0, fmt.Errorf("tracepoint %s is a %v", name, ptr.Target)
	}
	return len(proto.Params) - 1, nil // the first is the program's own data
}

func hasMember(spec *btf.Spec, name, member string) error {
	var s *btf.Struct
	if err := spec.TypeByName(name, &s); err != nil {
		return fmt.Errorf("struct %s: %w", name, err)
	}
	for _, m := range s.Members {
		if m.Name == member {
			return nil
		}
	}
	return fmt.Errorf("%w: struct %s has no %s", ebpf.ErrNotSupported, name, member)
}

func tryAtomicOr() error {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SocketFilter, License: "GPL",
		Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R0, 0),
			asm.StoreMem(asm.RFP, -8, asm.R0, asm.DWord),
			asm.OrAtomic.Mem(asm.RFP, asm.R0, asm.DWord, -8),
			asm.Return(),
		},
	})
	if err != nil {
		return err
	}
	return p.Close()
}

// tryPrograms loads what Start and Take load, and attaches nothing.
func tryPrograms() error {
	for name, object := range map[string][]byte{"tracker": trackerObject, "session": sessionObject} {
		spec, err := loadSpec(name, object)
		if err != nil {
			return err
		}
		c, err := ebpf.NewCollection(spec)
		if err != nil {
			return err
		}
		c.Close()
	}
	return nil
}

func probeFS(dir string) Feature {
	f := Feature{Name: "pins that outlive a process (bpffs at " + dir + ")", Required: true, Config: "CONFIG_BPF_SYSCALL"}
	b, err := os.ReadFile("/proc/filesystems")
	switch {
	case err != nil:
		f.Detail = err.Error()
	case !strings.Contains(string(b), "\tbpf\n"):
		f.Support = No
	default:
		f.Support = Yes
		if _, err := os.Stat(dir); err != nil {
			f.Support, f.Detail = No, err.Error()
		}
	}
	return f
}

func probeDiskSeq() Feature {
	f := Feature{Name: "sequence numbers of disks (diskseq)", Since: "5.15", Detail: "a device that is replaced by another of the same number and size is not noticed without"}
	disks, err := filepath.Glob("/sys/block/*")
	found, _ := filepath.Glob("/sys/block/*/diskseq")
	switch {
	case err != nil || len(disks) == 0:
		f.Detail = "there is no disk to look at"
	case len(found) > 0:
		f.Support, f.Detail = Yes, ""
	default:
		f.Support = No
	}
	return f
}

// probeLockdown: in the mode "confidentiality" programs may not read the kernel.
func probeLockdown() Feature {
	f := Feature{Name: "a kernel that is not locked down", Required: true, Config: "lockdown below confidentiality"}
	b, err := os.ReadFile("/sys/kernel/security/lockdown")
	switch {
	case errors.Is(err, os.ErrNotExist):
		f.Support, f.Detail = Yes, "there is no lockdown, or securityfs is not mounted"
	case err != nil:
		f.Detail = err.Error()
	case strings.Contains(string(b), "[confidentiality]"):
		f.Support = No
	default:
		f.Support = Yes
	}
	return f
}
