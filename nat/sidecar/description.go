package sidecar

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"floatip.io/floatip"
)

// maxDescription bounds the file, in bytes. All annotations of an object together have at most 256 KiB
// (k8s.io/apimachinery, TotalAnnotationSizeLimitB).
const maxDescription = 256 << 10

// errNoDescription: the file is absent or empty. The downward API writes an empty file for an annotation that is not
// there.
var errNoDescription = errors.New("no description of addresses")

// readDescription reads the file. It fails with errNoDescription, an error of the system, or one that names the field
// at fault.
func readDescription(path string) (floatip.PodNAT, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return floatip.PodNAT{}, errNoDescription
	}
	if err != nil {
		return floatip.PodNAT{}, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxDescription+1))
	if err != nil {
		return floatip.PodNAT{}, err
	}
	if len(raw) > maxDescription {
		return floatip.PodNAT{}, fmt.Errorf("%s has more than %d bytes", path, maxDescription)
	}
	if len(bytes.TrimSpace(raw)) == 0 {
		return floatip.PodNAT{}, errNoDescription
	}
	p, err := floatip.ParsePodNAT(raw)
	if err != nil {
		return floatip.PodNAT{}, fmt.Errorf("%s: %w", path, err)
	}
	return p, nil
}
