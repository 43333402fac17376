package cluster

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"floatip.io/floatip/test/rig/process"
)

// clients are the administrator's typed clients.
type clients struct {
	*kubernetes.Clientset
	config *rest.Config
}

// Kubeconfig is the path of the administrator's kubeconfig (group system:masters). Like all others it names the API
// server by the advertised address, so it works from every namespace with a route there.
func (c *Cluster) Kubeconfig() string { return c.path(kubeconfigDir, "admin") }

// NodeKubeconfig writes a kubeconfig for the kubelet of a node: user system:node:<name>, group system:nodes. It
// returns its path.
func (c *Cluster) NodeKubeconfig(node string) (string, error) {
	return c.clientKubeconfig("node-"+node, "system:node:"+node, "system:nodes")
}

// ClientCA is the file with the certificate of the authority that signed every client's, the API server's for its calls
// to kubelets too.
func (c *Cluster) ClientCA() string { return c.pki.cluster.certFile }

// ServiceAccountKubeconfig asks for a token of a service account, which must exist, and writes a kubeconfig with it.
// It returns its path. The token is valid for a day.
func (c *Cluster) ServiceAccountKubeconfig(ctx context.Context, namespace, name string) (string, error) {
	request := &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: new(int64((24 * time.Hour).Seconds()))},
	}
	answer, err := c.kube.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, name, request, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("request a token for service account %s/%s: %w", namespace, name, err)
	}
	return c.writeKubeconfig(namespace+"-"+name, &clientcmdapi.AuthInfo{Token: answer.Status.Token})
}

// clientKubeconfig writes a kubeconfig with a client certificate.
func (c *Cluster) clientKubeconfig(file, user string, groups ...string) (string, error) {
	files, err := c.pki.client(user, groups...)
	if err != nil {
		return "", err
	}
	return c.writeKubeconfig(file, &clientcmdapi.AuthInfo{ClientCertificate: files.cert, ClientKey: files.key})
}

func (c *Cluster) writeKubeconfig(file string, user *clientcmdapi.AuthInfo) (string, error) {
	const name = "rig"
	config := clientcmdapi.NewConfig()
	config.Clusters[name] = &clientcmdapi.Cluster{
		Server: c.URL(), CertificateAuthority: c.pki.cluster.certFile,
	}
	config.AuthInfos[name] = user
	config.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	config.CurrentContext = name
	path := c.path(kubeconfigDir, fileName(file))
	return path, clientcmd.WriteToFile(*config, path)
}

// fileName makes a file's name of a user's: system:node:a becomes system-node-a.
func fileName(user string) string { return strings.ReplaceAll(user, ":", "-") }

// RESTConfig is the administrator's access for this program, which itself may be outside of the namespace. Every call
// returns a copy of its own.
func (c *Cluster) RESTConfig() *rest.Config { return rest.CopyConfig(c.kube.config) }

// RESTConfigOf is like RESTConfig for one of the kubeconfigs that the cluster wrote.
func (c *Cluster) RESTConfigOf(kubeconfig string) (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, err
	}
	config.Dial = process.Dialer(c.opts.NetNS)
	config.QPS, config.Burst = -1, -1 // the rig creates hundreds of objects at once
	return config, nil
}

// Kubectl runs the real kubectl as administrator, inside the namespace, and returns what it wrote to standard output.
// An error carries what it wrote to standard error. Stdin may be nil.
func (c *Cluster) Kubectl(ctx context.Context, stdin io.Reader, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, c.kubectlPath(), append(c.kubectlFlags(), args...)...)
	var out, errOut bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &errOut
	if err := process.Run(c.opts.NetNS, cmd); err != nil {
		return out.String(), fmt.Errorf("kubectl %s: %w: %s",
			strings.Join(args, " "), err, strings.TrimSpace(errOut.String()))
	}
	return out.String(), nil
}

// KubectlCommand is the command line that a person types to run kubectl against this cluster.
func (c *Cluster) KubectlCommand() string {
	return strings.Join(append([]string{"nsenter", "--net=" + c.opts.NetNS, c.kubectlPath()}, c.kubectlFlags()...), " ")
}

func (c *Cluster) kubectlPath() string { return filepath.Join(c.opts.BinDir, "kubectl") }

func (c *Cluster) kubectlFlags() []string {
	return []string{"--kubeconfig=" + c.Kubeconfig(), "--cache-dir=" + c.path(tmpDir, "kubectl")}
}

// connect makes the administrator's clients.
func (c *Cluster) connect() error {
	if _, err := c.clientKubeconfig("admin", "kubernetes-admin", "system:masters"); err != nil {
		return err
	}
	config, err := c.RESTConfigOf(c.Kubeconfig())
	if err != nil {
		return err
	}
	set, err := kubernetes.NewForConfig(config)
	c.kube = &clients{Clientset: set, config: config}
	return err
}

// ready asks one of the API server's health paths.
func (k *clients) ready(ctx context.Context, path string) error {
	_, err := k.Discovery().RESTClient().Get().AbsPath(path).DoRaw(ctx)
	return err
}

func writeFile(path string, text string) error { return os.WriteFile(path, []byte(text), 0o644) }
