package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// meta is the Debian package that depends on the newest kernel for guests.
const meta = "linux-image-cloud-amd64"

// kernel is what a guest boots.
type kernel struct {
	image   string
	modules string // the folder of its modules, as /lib/modules/VERSION
}

func (k kernel) version() string { return filepath.Base(k.modules) }

// suites are the archives that a kernel is taken from: the Debian release that
// this machine runs, and what is carried back to it from a later one.
const (
	release   = "release"
	backports = "backports"
)

// install sees to the programs that are needed here.
func install(ctx context.Context, kernelToo bool) error {
	if runtime.GOOS != "linux" {
		return errors.New("needs Linux")
	}
	path := os.Getenv("PATH") + ":/usr/sbin:/sbin"
	if err := os.Setenv("PATH", path); err != nil {
		return err
	}
	programs := map[string]string{
		"qemu-system-x86_64": "qemu-system-x86", "mkfs.ext4": "e2fsprogs", "e2fsck": "e2fsprogs", "xz": "xz-utils",
		"ldd": "libc-bin", "fsfreeze": "util-linux", "dmsetup": "dmsetup",
	}
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
	var own archives
	if err := own.get(ctx, "", "update", "-q"); err != nil {
		return err
	}
	return own.get(ctx, "", append([]string{"install", "-q", "-y", "--no-install-recommends"}, missing...)...)
}

// archives is what apt-get and apt-cache look into: options for both. Nil is what
// this machine is set up with.
type archives []string

// get runs apt-get in a folder. Where packages come from is this machine's
// business and is not repeated in a message.
func (x archives) get(ctx context.Context, dir string, args ...string) error {
	c := exec.CommandContext(ctx, "apt-get", append(slices.Clone(x), args...)...)
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

// getKernel returns a kernel of a suite: Debian's, unpacked into the cache, the
// first time; this machine's own kernel, packages and lists are left alone.
func (s *settings) getKernel(ctx context.Context, suite string) (kernel, error) {
	home := filepath.Join(s.cache, "kernel")
	if suite != release {
		home += "-" + suite
	}
	if k, ok := findKernel(home); ok {
		return k, nil
	}
	for _, tool := range []string{"apt-get", "apt-cache"} {
		if _, err := exec.LookPath(tool); err != nil {
			return kernel{}, fmt.Errorf("needs %s to get Debian's kernel, or -kernel and -modules", tool)
		}
	}
	dir, err := os.MkdirTemp("", "vmtest-kernel")
	if err != nil {
		return kernel{}, err
	}
	defer os.RemoveAll(dir)
	var from archives
	if suite != release {
		if from, err = laterArchives(ctx, dir, suite); err != nil {
			return kernel{}, err
		}
	}
	pkg, err := from.newestKernel(ctx)
	if err != nil {
		return kernel{}, err
	}
	fmt.Printf("vmtest: getting %s\n", pkg)
	if err := from.get(ctx, dir, "download", "-q", "-o", "APT::Sandbox::User=root", pkg); err != nil {
		return kernel{}, err
	}
	found, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(found) != 1 {
		return kernel{}, fmt.Errorf("apt-get download left %d packages (%w)", len(found), err)
	}
	if err := unpack(ctx, found[0], filepath.Join(dir, "unpacked"), home); err != nil {
		return kernel{}, err
	}
	k, ok := findKernel(home)
	if !ok {
		return kernel{}, fmt.Errorf("%s holds no kernel, or no modules", pkg)
	}
	return k, nil
}

// unpack unpacks a package by way of a scratch folder: home may be on another
// file system.
func unpack(ctx context.Context, pkg, scratch, home string) error {
	if err := loud(exec.CommandContext(ctx, "dpkg-deb", "-x", pkg, scratch)); err != nil {
		return err
	}
	if err := errors.Join(os.RemoveAll(home), os.MkdirAll(filepath.Dir(home), 0o755)); err != nil {
		return err
	}
	return loud(exec.CommandContext(ctx, "cp", "-a", scratch, home))
}

// findKernel looks into a folder that a package was unpacked to.
func findKernel(home string) (kernel, bool) {
	for _, modules := range []string{"lib/modules/*", "usr/lib/modules/*"} {
		found, err := filepath.Glob(filepath.Join(home, modules))
		if err != nil || len(found) == 0 {
			continue
		}
		image := filepath.Join(home, "boot/vmlinuz-"+filepath.Base(found[0]))
		if _, err := os.Stat(image); err == nil {
			return kernel{image, found[0]}, true
		}
	}
	return kernel{}, false
}

// laterArchives sets up a suite of this machine's release in a folder of its
// own: where the release comes from, what is carried back to it comes from, too.
func laterArchives(ctx context.Context, dir, suite string) (archives, error) {
	told, err := exec.CommandContext(ctx, "sh", "-c", `. /etc/os-release && echo "$ID $VERSION_CODENAME"`).Output()
	id, codename, ok := strings.Cut(strings.TrimSpace(string(told)), " ")
	if err != nil || !ok || id != "debian" {
		return nil, fmt.Errorf("needs Debian to know its %s (this is %q)", suite, id)
	}
	lists, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME) $(COMPONENT)", "Created-By: Packages").Output()
	if err != nil {
		return nil, fmt.Errorf("apt-get indextargets: %w", err)
	}
	uri := ""
	for line := range strings.Lines(string(lists)) {
		if f := strings.Fields(line); len(f) == 3 && f[1] == codename && f[2] == "main" {
			uri = f[0]
		}
	}
	if uri == "" {
		return nil, fmt.Errorf("apt knows no source of %s main, so none of %s-%s", codename, codename, suite)
	}
	signed := ""
	const key = "/usr/share/keyrings/debian-archive-keyring.gpg"
	if _, err := os.Stat(key); err == nil {
		signed = "[signed-by=" + key + "] "
	}
	line := fmt.Sprintf("deb %s%s %s-%s main\n", signed, uri, codename, suite)
	for _, d := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	list := filepath.Join(dir, "sources.list")
	if err := os.WriteFile(list, []byte(line), 0o644); err != nil {
		return nil, err
	}
	x := archives{
		"-o", "Dir::Etc::SourceList=" + list, "-o", "Dir::Etc::SourceParts=-", "-o", "Dir::State::Lists=" + dir + "/lists",
		"-o", "Dir::Cache=" + dir + "/cache", "-o", "Acquire::Languages=none", "-o", "APT::Sandbox::User=root",
	}
	return x, x.get(ctx, dir, "update", "-q")
}

// newestKernel is the package that meta depends on.
func (x archives) newestKernel(ctx context.Context) (string, error) {
	depends := func() string {
		out, err := exec.CommandContext(ctx, "apt-cache", append(slices.Clone(x), "depends", meta)...).Output()
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
	if x == nil && os.Geteuid() == 0 { // a machine that has never fetched its lists
		if err := x.get(ctx, "", "update", "-q"); err != nil {
			return "", err
		}
		if name := depends(); name != "" {
			return name, nil
		}
	}
	return "", fmt.Errorf("no package %s here (it is Debian's, for amd64): give -kernel and -modules", meta)
}
