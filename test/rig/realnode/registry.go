package realnode

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// registryAddress is where real-node serves images, on the node's loopback.
const registryAddress = "127.0.0.1:5000"

// mirror tells containerd to ask the node's registry, whatever registry an image's name says (containerd,
// docs/hosts.md). It passes the name's registry as parameter ns.
const mirror = `[host."http://` + registryAddress + `"]
  capabilities = ["pull", "resolve"]
`

// registry serves images that WriteImages wrote, by the part of the OCI distribution specification that pulls images.
type registry struct {
	dir       string
	manifests index
}

func openRegistry(dir string) (*registry, error) {
	raw, err := os.ReadFile(filepath.Join(dir, indexFile))
	if err != nil {
		return nil, err
	}
	r := &registry{dir: dir}
	if err := json.Unmarshal(raw, &r.manifests); err != nil {
		return nil, fmt.Errorf("index of images in %s: %w", dir, err)
	}
	return r, nil
}

// serve answers on registryAddress of the calling thread's network namespace until the program ends.
func (r *registry) serve() error {
	listener, err := net.Listen("tcp", registryAddress)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: r, ReadHeaderTimeout: time.Minute}
	go server.Serve(listener)
	return nil
}

func (r *registry) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	if request.URL.Path == "/v2/" {
		return
	}
	name, kind, reference := splitPath(request.URL.Path)
	switch kind {
	case "manifests":
		found := r.resolve(request.URL.Query().Get("ns"), name, reference)
		w.Header().Set("Content-Type", mediaManifest)
		w.Header().Set("Docker-Content-Digest", string(found))
		r.serveBlob(w, request, found)
	case "blobs":
		w.Header().Set("Content-Type", "application/octet-stream")
		r.serveBlob(w, request, digest(reference))
	default:
		http.NotFound(w, request)
	}
}

// splitPath takes /v2/<name>/<kind>/<reference> apart; names hold slashes.
func splitPath(path string) (name, kind, reference string) {
	rest := strings.TrimPrefix(path, "/v2/")
	for _, kind := range []string{"manifests", "blobs"} {
		if name, reference, found := strings.Cut(rest, "/"+kind+"/"); found {
			return name, kind, reference
		}
	}
	return "", "", ""
}

// resolve returns the digest of the manifest that a tag or a digest stands for.
func (r *registry) resolve(host, name, reference string) digest {
	if strings.HasPrefix(reference, "sha256:") {
		return digest(reference)
	}
	if found, ok := r.manifests[host+"/"+name+":"+reference]; ok {
		return found
	}
	return r.manifests[AnyImage]
}

// serveBlob serves the content of a digest.
func (r *registry) serveBlob(w http.ResponseWriter, request *http.Request, d digest) {
	hex, isDigest := strings.CutPrefix(string(d), "sha256:")
	if !isDigest {
		http.NotFound(w, request)
		return
	}
	f, err := os.Open(filepath.Join(r.dir, blobsDir, filepath.Base(hex)))
	if err != nil {
		http.NotFound(w, request)
		return
	}
	defer f.Close()
	http.ServeContent(w, request, "", time.Time{}, f)
}
