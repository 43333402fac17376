package realnode

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"
)

// Image is an image that is built FROM scratch, with one layer.
type Image struct {
	// Files are the regular files in it: path in the image -> path on this machine. All are executable.
	Files map[string]string
	// Entrypoint is what an OCI image configuration calls so.
	Entrypoint []string
	// User is the numeric user and group that the image asks for, 0 if it says nothing.
	User int64
}

// SandboxImage is the name of the image that holds the namespaces of every pod; its entrypoint waits to be ended.
const SandboxImage = "registry.k8s.io/pause:3.10"

// AnyImage is the name under which WriteImages takes the image that is served for every name that it was not given.
const AnyImage = ""

// Media types of the OCI image specification.
const (
	mediaManifest = "application/vnd.oci.image.manifest.v1+json"
	mediaConfig   = "application/vnd.oci.image.config.v1+json"
	mediaLayer    = "application/vnd.oci.image.layer.v1.tar"
)

// The layout of the folder of images: blobs by their digests, and an index of manifests.
const (
	blobsDir  = "blobs"
	indexFile = "index.json"
)

// index leads from an image's full name, docker.io/floatip/floatip-agent:dev, to the digest of its manifest.
type index map[string]digest

// digest is "sha256:" and 64 hex digits.
type digest string

// descriptor points to a blob (OCI image specification, descriptor.md).
type descriptor struct {
	MediaType string `json:"mediaType"`
	Digest    digest `json:"digest"`
	Size      int64  `json:"size"`
}

// WriteImages writes images for the registry of the node whose folder is dir. Names are those that Pod objects use.
func WriteImages(dir string, images map[string]Image) error {
	dir = filepath.Join(dir, imagesDir)
	if err := os.MkdirAll(filepath.Join(dir, blobsDir), 0o755); err != nil {
		return err
	}
	manifests := make([]digest, len(images))
	var names []string
	var group errgroup.Group
	for name, image := range images {
		i := len(names)
		names = append(names, name)
		group.Go(func() (err error) {
			if manifests[i], err = writeImage(dir, image); err != nil {
				err = fmt.Errorf("image %q: %w", name, err)
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	all := index{}
	for i, name := range names {
		all[fullName(name)] = manifests[i]
	}
	raw, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, indexFile), raw, 0o644)
}

// fullName adds the registry and the tag that container runtimes add to a short name.
func fullName(name string) string {
	if name == AnyImage {
		return name
	}
	host, _, found := strings.Cut(name, "/")
	if !found || !strings.ContainsAny(host, ".:") {
		name = "docker.io/" + name
	}
	if !strings.Contains(path.Base(name), ":") {
		name += ":latest"
	}
	return name
}

// writeImage writes layer, configuration and manifest of an image, and returns the digest of the manifest.
func writeImage(dir string, image Image) (digest, error) {
	layer, err := writeBlob(dir, mediaLayer, func(w io.Writer) error { return writeLayer(w, image.Files) })
	if err != nil {
		return "", err
	}
	type config struct {
		Entrypoint []string `json:",omitempty"`
		User       string   `json:",omitempty"`
	}
	settings := config{Entrypoint: image.Entrypoint}
	if image.User != 0 {
		settings.User = strconv.FormatInt(image.User, 10) + ":" + strconv.FormatInt(image.User, 10)
	}
	configuration, err := writeJSON(dir, mediaConfig, map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "config": settings,
		"rootfs": map[string]any{"type": "layers", "diff_ids": []digest{layer.Digest}}, // the layer is not compressed
	})
	if err != nil {
		return "", err
	}
	manifest, err := writeJSON(dir, mediaManifest, map[string]any{
		"schemaVersion": 2, "mediaType": mediaManifest, "config": configuration, "layers": []descriptor{layer},
	})
	return manifest.Digest, err
}

func writeJSON(dir, mediaType string, content any) (descriptor, error) {
	return writeBlob(dir, mediaType, func(w io.Writer) error { return json.NewEncoder(w).Encode(content) })
}

// writeBlob stores what write writes under its digest.
func writeBlob(dir, mediaType string, write func(io.Writer) error) (_ descriptor, err error) {
	f, err := os.CreateTemp(dir, "blob-*")
	if err != nil {
		return descriptor{}, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	sum := sha256.New()
	if err := write(io.MultiWriter(f, sum)); err != nil {
		return descriptor{}, err
	}
	info, err := f.Stat()
	if err != nil {
		return descriptor{}, err
	}
	hex := fmt.Sprintf("%x", sum.Sum(nil))
	d := descriptor{MediaType: mediaType, Digest: digest("sha256:" + hex), Size: info.Size()}
	return d, os.Rename(f.Name(), filepath.Join(dir, blobsDir, hex))
}

// writeLayer writes a tar archive of files and the folders that they lie in.
func writeLayer(w io.Writer, files map[string]string) error {
	archive := tar.NewWriter(w)
	folders := map[string]bool{"/": true}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := writeFolders(archive, path.Dir(name), folders); err != nil {
			return err
		}
		if err := writeFile(archive, name, files[name]); err != nil {
			return err
		}
	}
	return archive.Close()
}

// writeFolders writes folder and those above it, unless they were written before.
func writeFolders(archive *tar.Writer, folder string, written map[string]bool) error {
	if written[folder] {
		return nil
	}
	if err := writeFolders(archive, path.Dir(folder), written); err != nil {
		return err
	}
	written[folder] = true
	return archive.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: folder[1:] + "/", Mode: 0o755})
}

func writeFile(archive *tar.Writer, name, from string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	header := &tar.Header{Typeflag: tar.TypeReg, Name: name[1:], Mode: 0o755, Size: info.Size()}
	if err := archive.WriteHeader(header); err != nil {
		return err
	}
	_, err = io.Copy(archive, f)
	return err
}
