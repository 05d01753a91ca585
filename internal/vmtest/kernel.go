package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// meta is the Debian package that depends on the newest kernel for guests.
const meta = "linux-image-cloud-amd64"

// install sees to the programs that are needed here.
func install(ctx context.Context, kernelToo bool) error {
	if runtime.GOOS != "linux" {
		return errors.New("needs Linux")
	}
	path := os.Getenv("PATH") + ":/usr/sbin:/sbin"
	if err := os.Setenv("PATH", path); err != nil {
		return err
	}
	programs := map[string]string{"qemu-system-x86_64": "qemu-system-x86", "mkfs.ext4": "e2fsprogs", "xz": "xz-utils"}
	if kernelToo {
		programs["dpkg-deb"] = "dpkg"
	}
	var missing []string
	for program, pkg := range programs {
		if _, err := exec.LookPath(program); err != nil {
			missing = append(missing, pkg)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	if _, err := exec.LookPath("apt-get"); err != nil || os.Geteuid() != 0 {
		return fmt.Errorf("needs the Debian packages %s, or what holds the same programs: install them (it takes root and apt-get)", strings.Join(missing, " "))
	}
	fmt.Printf("vmtest: installing %s\n", strings.Join(missing, " "))
	if err := apt(ctx, "", "update", "-q"); err != nil {
		return err
	}
	return apt(ctx, "", append([]string{"install", "-q", "-y", "--no-install-recommends"}, missing...)...)
}

// apt runs apt-get in a folder. Where packages come from is this machine's
// business and is not repeated in a message.
func apt(ctx context.Context, dir string, args ...string) error {
	c := exec.CommandContext(ctx, "apt-get", args...)
	c.Dir = dir
	c.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	out, err := c.CombinedOutput()
	if err == nil {
		return nil
	}
	var said []string
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "E:") && !strings.Contains(line, "://") {
			said = append(said, strings.TrimSpace(line))
		}
	}
	return fmt.Errorf("apt-get %s: %w: %s", args[0], err, strings.Join(said, " "))
}

// getKernel fills in kernel and modules: Debian's, unpacked into the cache, the
// first time; this machine's own kernel and packages are left alone.
func (s *settings) getKernel(ctx context.Context) error {
	if s.kernel != "" || s.modules != "" {
		if s.kernel == "" || s.modules == "" {
			return errors.New("-kernel and -modules go together")
		}
		return nil
	}
	if s.findKernel() {
		return nil
	}
	for _, tool := range []string{"apt-get", "apt-cache"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("needs %s to get Debian's kernel, or -kernel and -modules", tool)
		}
	}
	pkg, err := newestKernel(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("vmtest: getting %s\n", pkg)
	dir, err := os.MkdirTemp("", "vmtest-kernel")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := apt(ctx, dir, "download", "-q", "-o", "APT::Sandbox::User=root", pkg); err != nil {
		return err
	}
	found, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(found) != 1 {
		return fmt.Errorf("apt-get download left %d packages (%w)", len(found), err)
	}
	unpacked := filepath.Join(dir, "unpacked")
	if err := loud(exec.CommandContext(ctx, "dpkg-deb", "-x", found[0], unpacked)); err != nil {
		return err
	}
	if err := os.RemoveAll(s.cache); err != nil {
		return err
	}
	if err := os.MkdirAll(s.cache, 0o755); err != nil {
		return err
	}
	// The cache may be on another file system.
	if err := loud(exec.CommandContext(ctx, "cp", "-a", unpacked, filepath.Join(s.cache, "kernel"))); err != nil {
		return err
	}
	if !s.findKernel() {
		return fmt.Errorf("%s holds no kernel, or no modules", pkg)
	}
	return nil
}

// findKernel looks into the cache.
func (s *settings) findKernel() bool {
	for _, modules := range []string{"lib/modules/*", "usr/lib/modules/*"} {
		found, err := filepath.Glob(filepath.Join(s.cache, "kernel", modules))
		if err != nil || len(found) == 0 {
			continue
		}
		image := filepath.Join(s.cache, "kernel/boot/vmlinuz-"+filepath.Base(found[0]))
		if _, err := os.Stat(image); err == nil {
			s.kernel, s.modules = image, found[0]
			return true
		}
	}
	return false
}

// newestKernel is the package that meta depends on.
func newestKernel(ctx context.Context) (string, error) {
	depends := func() string {
		out, err := exec.CommandContext(ctx, "apt-cache", "depends", meta).Output()
		if err != nil {
			return ""
		}
		for line := range strings.Lines(string(out)) {
			if name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: linux-image-"); ok {
				return "linux-image-" + name
			}
		}
		return ""
	}
	if name := depends(); name != "" {
		return name, nil
	}
	if os.Geteuid() == 0 { // a machine that has never fetched its lists
		if err := apt(ctx, "", "update", "-q"); err != nil {
			return "", err
		}
		if name := depends(); name != "" {
			return name, nil
		}
	}
	return "", fmt.Errorf("no package %s here (it is Debian's, for amd64): give -kernel and -modules", meta)
}
