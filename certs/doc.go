// Package certs gives the webhook server its certificate and the API server the authority to check it with.
//
// The authority's key lives in a Secret; the serving certificate lives in memory only and is issued anew by every
// process. The authority's certificates are written into the caBundle of the webhook configurations.
//
//	Secret floatip-webhook-ca    ca.crt ca.key        the authority that issues
//	                             next.crt next.key    its successor, already trusted, not yet issuing
//
// An authority is replaced in two steps, so that no request meets a certificate it cannot check: the successor is
// published in every caBundle, and issues only after all API servers had time to see it (overlap). What somebody
// deletes or empties, Secret or caBundle, is written again from memory.
//
// github.com/open-policy-agent/cert-controller does the same job in another way: the certificate is a mounted Secret,
// which the kubelet delivers up to a minute after it was written, and a new authority replaces the old one in one step.
// Both would refuse requests.
package certs
