// Package volumes keeps the images behind PersistentVolumes.
package volumes

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// DriverName is the CSI driver's name.
const DriverName = "volumes.cluster.local"

const (
	// mkfs.xfs refuses anything smaller.
	smallestVolume = 300 << 20
	// Loop devices have whole sectors, and XFS wants whole blocks.
	volumeGranularity = 1 << 20
)

// Images are the volumes of all nodes: one sparse file each, in a folder per node. All nodes live on one machine, so
// the control plane can create, grow and delete them, while only the node of a volume ever attaches it.
type Images struct{ Root string }

// Handle names a volume for the driver: its node and its PersistentVolume.
func Handle(node, volume string) string { return node + ":" + volume }

// Path is where the image of a volume is.
func (i Images) Path(handle string) (string, error) {
	node, volume, found := strings.Cut(handle, ":")
	if !found || node != filepath.Base(node) || volume != filepath.Base(volume) {
		return "", fmt.Errorf("%q is not a volume handle", handle)
	}
	return filepath.Join(i.Root, node, volume+".img"), nil
}

// Capacity is the size that a request gets: never less than asked for, never less than XFS can format.
func Capacity(requested int64) int64 {
	size := max(requested, smallestVolume)
	return (size + volumeGranularity - 1) / volumeGranularity * volumeGranularity
}

// Grow makes an image at least size bytes long. It never shrinks one.
func Grow(path string, size int64) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil || info.Size() >= size {
		return err
	}
	return file.Truncate(size)
}

// Run executes a command and puts its output into the error, if it fails.
func Run(name string, args ...string) (string, error) {
	output, err := exec.Command(name, args...).CombinedOutput()
	text := strings.TrimSpace(string(output))
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, text)
	}
	return text, nil
}
