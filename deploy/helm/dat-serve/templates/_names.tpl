{{- define "dat-serve.fullname" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" }}{{ end }}
{{- end }}

{{/* What pods are found by; it never changes within a release. */}}
{{- define "dat-serve.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "dat-serve.labels" -}}
{{ include "dat-serve.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "dat-serve.image" -}}
{{- if .Values.image.digest }}{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else }}{{ .Values.image.repository }}:{{ .Values.image.tag | default (printf "%s%s" .Chart.AppVersion (gt (int .Values.gpu.count) 0 | ternary "-cuda" "")) }}
{{- end }}
{{- end }}

{{/* A value as the service's variables want it; Helm holds whole numbers as floats, and would write 3.3e+07. */}}
{{- define "dat-serve.setting" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) }}{{ int64 . }}{{ else }}{{ . }}{{ end }}
{{- end }}

{{/* Until Kubernetes kills: connections that still come, the drain, and the end of all processes after it. */}}
{{- define "dat-serve.graceSeconds" -}}
{{- $drain_ms := int64 (.Values.settings.drain_timeout_ms | default 30000) -}}
{{ add (int .Values.preStopSeconds) (div (add $drain_ms 999) 1000) 20 }}
{{- end }}

{{- define "dat-serve.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "dat-serve.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* What a pod asks for and is limited to, without its GPUs, as JSON. */}}
{{- define "dat-serve.resources" -}}
{{- $resources := .Values.resources | default dict -}}
{{ dict "requests" ($resources.requests | default dict) "limits" ($resources.limits | default dict) | toJson }}
{{- end }}

{{/* The taints of nodes with the GPUs that a pod is given, as JSON: by their resource, and those of NVIDIA's slices (MIG) by
that of whole GPUs besides, which is what most clusters taint such nodes by. */}}
{{- define "dat-serve.gpuTaints" -}}
{{- $resources := include "dat-serve.resources" . | fromJson -}}
{{- $taints := gt (int .Values.gpu.count) 0 | ternary (list .Values.gpu.resource) (list) -}}
{{- range $resource := concat (keys $resources.requests) (keys $resources.limits) | sortAlpha -}}
{{- if hasPrefix "nvidia.com/" $resource }}{{ $taints = append $taints $resource }}{{ end -}}
{{- end -}}
{{- range $resource := $taints -}}
{{- if hasPrefix "nvidia.com/" $resource }}{{ $taints = append $taints "nvidia.com/gpu" }}{{ end -}}
{{- end -}}
{{ $taints | uniq | toJson }}
{{- end }}

{{/* The pod that asks; not one of those that serve. */}}
{{- define "dat-serve.testSelector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}-test
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Models as the service's variable has them: the default first, each once. */}}
{{- define "dat-serve.models" -}}
{{- with .Values.models -}}
{{- $names := .names -}}
{{- if .default -}}
{{- if and $names (not (has .default $names)) (not (has "all" $names)) -}}
{{- fail (printf "models.default %s is none of models.names" .default) -}}
{{- end -}}
{{- $names = prepend (without $names .default) .default -}}
{{- end -}}
{{- join "," $names -}}
{{- end -}}
{{- end }}

{{/* Whether models can be loaded and unloaded; "true" or nothing. */}}
{{- define "dat-serve.control" -}}
{{- if or .Values.models.control .Values.models.watch }}true{{ end }}
{{- end }}

{{/* What these values cannot be together. */}}
{{- define "dat-serve.checkModels" -}}
{{- with .Values.models }}
{{- if and (or .names .default) (or (hasKey $.Values.settings "model") (hasKey $.Values.settings "model_version")) }}
{{- fail "models.names and models.default take the place of settings.model and settings.model_version" }}
{{- end }}
{{- if and .watch (not .volume) (not .address) }}
{{- fail "models.watch wants models.volume or models.address: what is in an image never changes" }}
{{- end }}
{{- if and .volume .address }}{{ fail "models.address takes the place of models.volume" }}{{ end }}
{{- if and .address $.Values.networkPolicy.enabled (not $.Values.networkPolicy.egress) }}
{{- fail "models.address wants networkPolicy.egress: without it nothing is let out" }}
{{- end }}
{{- end }}
{{- if and (include "dat-serve.control" .) .Values.ingress.enabled (not .Values.apiKeys.secretName) }}
{{- fail "models.control behind an ingress wants apiKeys.secretName, or everybody could unload the models" }}
{{- end }}
{{- end }}

{{/* The settings of single models as the service's file has them. */}}
{{- define "dat-serve.settingsFile" -}}
{{- toToml (dict "models" .Values.models.settings) }}
{{- end }}
