package rig

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"floatip.io/floatip/test/rig/kubelet"
	"floatip.io/floatip/test/rig/realnode"
)

// module is the line that go.mod of the repository begins with.
const module = "module floatip.io/floatip\n"

// binaries are the programs that a rig runs.
type binaries struct {
	dir     string // the rig's own, bin/rig
	product string // floatip's, bin
}

func (b binaries) kubelet() string     { return filepath.Join(b.dir, "kubelet-standin") }
func (b binaries) realKubelet() string { return filepath.Join(b.dir, "kubelet") }
func (b binaries) realNode() string    { return filepath.Join(b.dir, "real-node") }
func (b binaries) launcher() string    { return filepath.Join(b.dir, "virt-launcher-standin") }
func (b binaries) packages() string    { return filepath.Join(b.product, "packages") }
func (b binaries) pause() string       { return filepath.Join(b.dir, "pause") }
func (b binaries) handler() string     { return filepath.Join(b.dir, "virt-handler-standin") }
func (b binaries) virtChroot() string  { return filepath.Join(b.dir, "virt-chroot") }
func (b binaries) kubectl() string     { return filepath.Join(b.dir, "kubectl") }

// findBinaries looks for the programs in bin of the repository that the working directory is in. Real says that nodes
// are to have the real kubelet.
func findBinaries(real bool) (binaries, error) {
	root, err := findRoot()
	if err != nil {
		return binaries{}, err
	}
	b := binaries{dir: filepath.Join(root, "bin", "rig"), product: filepath.Join(root, "bin")}
	wanted := []string{
		b.pause(), b.handler(), b.virtChroot(), b.kubectl(),
		b.path("floatip-webhook"), b.path("floatip-sidecar"), b.path("floatip-agent"),
	}
	var missing []string
	if real {
		wanted = append(wanted, b.realKubelet(), b.realNode(), b.launcher())
		missing = realnode.Missing(b.packages())
	} else {
		wanted = append(wanted, b.kubelet())
	}
	for _, path := range wanted {
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			missing = append(missing, path)
		}
	}
	if len(missing) > 0 {
		return b, fmt.Errorf("programs are missing: %s: run make packages build rig-binaries", strings.Join(missing, ", "))
	}
	return b, nil
}

func (b binaries) path(product string) string { return filepath.Join(b.product, product) }

// findRoot returns the folder of the repository.
func findRoot() (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		raw, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(raw), module) {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("%s is in no checkout of floatip, whose bin folder the rig needs", start)
		}
	}
}

// nonRoot is the user of the webhook's image, as manifests/Dockerfile has it.
const nonRoot = 65532

// images are those that manifests/Dockerfile describes, under the names in manifests/.
func (b binaries) images() kubelet.Images {
	images := kubelet.Images{}
	for program, user := range map[string]int64{"floatip-webhook": nonRoot, "floatip-sidecar": 0, "floatip-agent": 0} {
		images["floatip/"+program+":dev"] = kubelet.Image{
			Files: map[string]string{"/" + program: b.path(program)}, Entrypoint: []string{"/" + program}, User: user,
		}
	}
	return images
}
