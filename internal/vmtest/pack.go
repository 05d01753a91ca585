package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// built are the programs of ours in a guest, and what they are built from.
var built = []struct {
	name string
	args []string
}{
	{"init", []string{"build", "./internal/vmtest/guest"}},
	{"failback", []string{"build", "./cmd/failback"}},
	{"ebpf.test", []string{"test", "-c", "./cbt/ebpf"}},
	{"tracked.test", []string{"test", "-c", "./internal/vmtest/tracked"}},
	{"throttle.test", []string{"test", "-c", "./internal/throttle"}},
}

// fsSize is the size of the empty ext4 that the guest finds.
const fsSize = 48 << 20 // bytes

// build makes what all guests have: our programs, and an empty file system.
func build(ctx context.Context, dir string) error {
	for _, b := range built {
		verb, pkg := b.args[:len(b.args)-1], b.args[len(b.args)-1]
		args := append(append([]string{}, verb...), "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, b.name), pkg)
		c := exec.CommandContext(ctx, "go", args...)
		c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOFLAGS=-buildvcs=false")
		if err := loud(c); err != nil {
			return err
		}
	}
	image := filepath.Join(dir, "ext4")
	if err := sparse(image, fsSize); err != nil {
		return err
	}
	if err := loud(exec.CommandContext(ctx, "mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", image)); err != nil {
		return err
	}
	return loud(exec.CommandContext(ctx, "gzip", "-1", image))
}

// sparse makes an empty file of a size in bytes.
func sparse(path string, size int64) error {
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return err
	}
	return os.Truncate(path, size)
}

// modules are what the scenarios of a part need; one that is built in is not
// found, which the guest notices if it is not so.
var modules = map[string][]string{
	media: {"brd", "ext4", "crc32c_generic", "dm-mod", "dm-log-writes", "dm-flakey", "scsi_debug", "sd_mod"},
	tracker: {
		"brd", "ext4", "crc32c_generic", "virtio_pci", "virtio_blk", "nvme", "scsi_debug", "sd_mod", "loop", "zram", "lzo-rle", "nbd",
		"null_blk", "nd_pmem", "nd_e820", "dm-mod", "dm-thin-pool", "dm-snapshot", "dm-crypt", "xts", "ecb", "aes_generic", "dm-multipath", "dm-round-robin",
		"raid0", "raid1", "raid10", "raid456",
	},
}

// pack packs all of a guest.
func (s *settings) pack(dir, initrd string) error {
	out, err := os.Create(initrd)
	if err != nil {
		return err
	}
	defer out.Close()
	a := newArchive(out)
	for _, d := range []string{"dev", "proc", "sys", "tmp", "mnt", "modules"} {
		a.dir(d)
	}
	a.console("dev/console")
	if err := s.addModules(a); err != nil {
		return err
	}
	told, err := json.Marshal(s.job)
	if err != nil {
		return err
	}
	a.file("job.json", 0o600, told)
	files := map[string]os.FileMode{"ext4.gz": 0o600}
	for _, b := range built {
		files[b.name] = 0o755
	}
	for name, mode := range files {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		a.file(name, mode, content)
	}
	if s.Part == tracker {
		if err := addPrograms(a); err != nil {
			return err
		}
	}
	return a.close()
}

// addModules packs the modules and tells the guest their order.
func (s *settings) addModules(a *archive) error {
	index, err := indexModules(s.kernel.modules)
	if err != nil {
		return err
	}
	list, err := index.order(modules[s.Part])
	if err != nil {
		return err
	}
	s.job.Modules = nil
	for _, m := range list {
		name := "modules/" + m.name + ".ko"
		a.file(name, 0o600, m.content)
		s.job.Modules = append(s.job.Modules, "/"+name)
	}
	return nil
}

// diskSize is the size of the disks that the machine gives the guest.
const diskSize = 48 << 20 // bytes

// disks makes the disks of a part and returns what QEMU is told of them: one of
// virtio; one of NVMe; and one that two controllers of NVMe reach.
func (s *settings) disks(dir string) ([]string, error) {
	if s.Part != tracker {
		return nil, nil
	}
	var args []string
	for _, id := range []string{"virtio", "nvme", "multi"} {
		image := filepath.Join(dir, id+".img")
		if err := os.RemoveAll(image); err != nil {
			return nil, err
		}
		if err := sparse(image, diskSize); err != nil {
			return nil, err
		}
		args = append(args, "-drive", fmt.Sprintf("file=%s,format=raw,if=none,id=%s,cache=unsafe,discard=unmap", image, id))
	}
	return append(args,
		"-device", "virtio-blk-pci,drive=virtio",
		"-device", "nvme,serial=one,drive=nvme",
		"-device", "nvme-subsys,id=both",
		"-device", "nvme,serial=two,subsys=both", "-device", "nvme,serial=two,subsys=both",
		"-device", "nvme-ns,drive=multi,nsid=1",
	), nil
}
