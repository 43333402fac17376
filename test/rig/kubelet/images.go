package kubelet

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

// Image is the root file system and the configuration of an image that was built FROM scratch.
type Image struct {
	// Files are the regular files in it: path in the image -> path on this machine.
	Files map[string]string `json:"files"`
	// Entrypoint and Cmd are what an OCI image configuration calls so.
	Entrypoint []string `json:"entrypoint"`
	Cmd        []string `json:"cmd,omitempty"`
	Env        []string `json:"env,omitempty"`
	// User is the numeric user that the image asks for, 0 if it says nothing.
	User int64 `json:"user,omitempty"`
	// StandIn marks an image whose program is not there: Entrypoint and Cmd hold whatever the Pod object says.
	StandIn bool `json:"standIn,omitempty"`
}

// Images are the images of a node by their full name, "floatip/floatip-sidecar:dev".
type Images map[string]Image

// pausePath is where the stand-in program lies in its image.
const pausePath = "/pause"

// ReadImages reads the JSON form of Images from a file.
func ReadImages(path string) (Images, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var images Images
	if err := json.Unmarshal(raw, &images); err != nil {
		return nil, fmt.Errorf("images in %s: %w", path, err)
	}
	return images, nil
}

// imageID is an image's name with a digest, as a container runtime reports it. The digest stands for what a registry
// would have said: virt-controller makes no migration target from an image without one
// (pkg/container-disk/container-disk.go, toImageWithDigest).
func imageID(name string) string {
	repository, digest, pinned := strings.Cut(name, "@")
	if !pinned {
		digest = fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(name)))
	}
	if colon := strings.LastIndex(repository, ":"); colon > strings.LastIndex(repository, "/") {
		repository = repository[:colon]
	}
	return repository + "@" + digest
}

// find returns the image of that name, with or without the default registry, or the stand-in for it. pause is the path
// of the stand-in's program on this machine.
func (i Images) find(name, pause string) Image {
	for _, candidate := range []string{name, strings.TrimPrefix(name, "docker.io/")} {
		if image, ok := i[candidate]; ok {
			return image
		}
	}
	return Image{Files: map[string]string{pausePath: pause}, Entrypoint: []string{pausePath}, StandIn: true}
}
