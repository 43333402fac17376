package realnode

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestFullNames(t *testing.T) {
	for name, want := range map[string]string{
		"floatip/floatip-agent:dev":                   "docker.io/floatip/floatip-agent:dev",
		"quay.io/kubevirt/cirros-container-disk-demo": "quay.io/kubevirt/cirros-container-disk-demo:latest",
		"localhost:5000/x":                            "localhost:5000/x:latest",
		SandboxImage:                                  SandboxImage,
		AnyImage:                                      AnyImage,
	} {
		if have := fullName(name); have != want {
			t.Errorf("%q: have %q, want %q", name, have, want)
		}
	}
}

// An image is pulled by name, then by digests, and what comes is what was put in.
func TestImagesAreServed(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program, []byte("a program"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := WriteImages(dir, map[string]Image{
		"floatip/floatip-webhook:dev": {
			Files: map[string]string{"/usr/bin/one": program, "/two": program}, Entrypoint: []string{"/two"}, User: 65532,
		},
		AnyImage: {Files: map[string]string{"/other": program}},
	})
	if err != nil {
		t.Fatal(err)
	}
	images, err := openRegistry(filepath.Join(dir, imagesDir))
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(images)
	defer server.Close()

	var manifest struct {
		Config descriptor
		Layers []descriptor
	}
	get(t, server.URL+"/v2/floatip/floatip-webhook/manifests/dev?ns=docker.io", "", &manifest)
	var config struct {
		Config struct {
			Entrypoint []string
			User       string
		}
		Rootfs struct {
			DiffIDs []digest `json:"diff_ids"`
		}
	}
	get(t, server.URL+"/v2/floatip/floatip-webhook/blobs/"+string(manifest.Config.Digest), manifest.Config.Digest, &config)
	if config.Config.User != "65532:65532" || len(config.Config.Entrypoint) != 1 || config.Config.Entrypoint[0] != "/two" {
		t.Errorf("configuration %+v", config)
	}
	if len(manifest.Layers) != 1 || len(config.Rootfs.DiffIDs) != 1 || manifest.Layers[0].Digest != config.Rootfs.DiffIDs[0] {
		t.Fatalf("layers %+v, of the root %v: want one and the same", manifest.Layers, config.Rootfs.DiffIDs)
	}
	layer := get(t, server.URL+"/v2/x/blobs/"+string(manifest.Layers[0].Digest), manifest.Layers[0].Digest, nil)
	want := []string{"two 755 a program", "usr/ 755 ", "usr/bin/ 755 ", "usr/bin/one 755 a program"}
	if diff := cmp.Diff(want, entries(t, layer)); diff != "" {
		t.Errorf("layer (-want +have):\n%s", diff)
	}

	var other struct{ Layers []descriptor }
	get(t, server.URL+"/v2/kubevirt/anything/manifests/v1?ns=quay.io", "", &other)
	if other.Layers[0].Digest == manifest.Layers[0].Digest {
		t.Error("an unknown name leads to a known image")
	}
	for _, path := range []string{"/v2/x/blobs/sha256:00", "/v2/x/blobs/index.json", "/v2/x/blobs/..", "/elsewhere"} {
		answer, err := http.Get(server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %s, want 404", path, answer.Status)
		}
	}
}

// get fetches a URL and checks that the content has the digest that the server or the caller names.
func get(t *testing.T, url string, want digest, into any) []byte {
	t.Helper()
	answer, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	raw, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", url, answer.Status, err)
	}
	if want == "" {
		want = digest(answer.Header.Get("Docker-Content-Digest"))
	}
	if have := digest(fmt.Sprintf("sha256:%x", sha256.Sum256(raw))); have != want {
		t.Fatalf("%s has the digest %s, want %s", url, have, want)
	}
	if into != nil {
		if err := json.Unmarshal(raw, into); err != nil {
			t.Fatal(err)
		}
	}
	return raw
}

func entries(t *testing.T, layer []byte) (all []string) {
	t.Helper()
	archive := tar.NewReader(bytes.NewReader(layer))
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, fmt.Sprintf("%s %o %s", header.Name, header.Mode, content))
	}
}
